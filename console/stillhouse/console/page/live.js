// Brings what is new every five seconds, without a reload: scroll and focus stay. Where scripts are off, the page reloads itself.
setInterval(async () => {
  const away = document.getElementById("away");
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    const shown = document.querySelector("main");
    if (fresh.innerHTML !== shown.innerHTML) shown.replaceWith(fresh);
    away.hidden = true;
  } catch {
    away.hidden = false;
  }
}, 5000);
