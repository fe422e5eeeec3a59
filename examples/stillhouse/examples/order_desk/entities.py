"""Names that tasks are made of. Two pools with no word in common: what training sees, and what it never sees.

The training pool is small on purpose. A student of 135 M parameters learns the desk's policies from some 300 runs, but copying a
name it has never met is a skill of its own; the `unseen` pool measures that apart.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entities:
    """One pool. Every word is a single word, so that pools can be compared word by word (a domain counts as its two parts)."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    domains: tuple[str, ...]
    colours: tuple[str, ...]
    items: tuple[str, ...]
    streets: tuple[str, ...]
    cities: tuple[str, ...]

    def words(self) -> frozenset[str]:
        """All words of the pool in lower case, domains taken apart at the dot."""
        fields = (self.first, self.last, self.colours, self.items, self.streets, self.cities)
        plain = {word.lower() for field in fields for word in field}
        return frozenset(plain | {part for domain in self.domains for part in domain.split(".")})


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SEEN = Entities(
    first=_words(
        "Ana Bella Carl Dana Eli Fay Gus Hannah Ivan Jade Kim Leo Mia Nina Omar Pia Quinn Rosa Sam Tara "
        "Uma Vera Will Yara Zoe Abel Cora Dirk Emma Finn"
    ),
    last=_words(
        "Ruiz Shaw Chan Novak Okoye Patel Reed Stone Turner Vega Wong Young Adams Blake Cruz Diaz Evans Frost Grant Hayes "
        "Ito Jones King Lopez Moss Nash Olsen Price Quist Rossi"
    ),
    domains=_words("mail.com inbox.net post.org web.io"),
    colours=_words("blue red green black white silver yellow brown pink grey"),
    items=_words(
        "lamp mug chair desk clock vase kettle rug mirror bottle jacket scarf watch radio wallet basket blanket pillow bowl plate "
        "speaker tent helmet guitar"
    ),
    streets=_words("Oak Pine Mill High Park Lake Hill Elm Cedar River Church Station"),
    cities=_words("Leeds York Bath Derby Luton Dover Truro Ripon Wells Perth"),
)

UNSEEN = Entities(
    first=_words(
        "Adam Alice Bruno Clara David Elsa Flora George Helen Hugo Irma Jonas Karin Laura Lars Marta Nils Oscar Paul Petra Ralf Simon "
        "Thomas Ursula Victor Wanda"
    ),
    last=_words(
        "Baker Carter Berg Conti Fischer Garcia Hansen Hughes Ivanov Jansen Keller Larsen Martin Moreau Nilsen Ortega Parker "
        "Petrov Ricci Santos Tanaka Vargas Walker Weber Zhang"
    ),
    domains=_words("letters.edu mailbox.eu"),
    colours=_words("purple orange beige violet maroon olive"),
    items=_words(
        "teapot sofa ladder drone printer camera bicycle sandals umbrella backpack toaster candle carpet goggles stool shelf violin gloves"
    ),
    streets=_words("Maple Bridge Garden Market Castle Meadow"),
    cities=_words("Malton Corby Stroud Oakham Whitby Ludlow"),
)
