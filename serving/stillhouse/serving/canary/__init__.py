"""Canary: the statistics that decide a student's fate. Pure: no Kafka, no clock, no disk; everything comes in by arguments.

How a process uses it:

1. **Start.** `experiment.plan(...)` once, from the settings, the references' sums before the start and `version` (1 + versions of the
   route whose final test has opened). The `Experiment` is frozen: publish it (`msgspec.json.encode`) with the first record, and read it
   back on a restart; it must not be planned again. The gateway assigns by `schemas.assign.assign(unit, experiment.name,
   experiment.shares(stage))` and stores the arm with the unit.
2. **Epochs.** `Book(experiment.name, experiment.scales, horizon_us)`, and `book.open_epoch(number, stage, shares)` whenever shares, arms,
   threshold or outcome source change, before the first unit of it. Numbers are never used twice; one stage may have several epochs.
3. **Facts.** `book.observe(facts)` for every record of the topic `trajectories`, in any order, repeated ones too. The book is a fold: a
   restarted process reads the topic again and has the same sums.
4. **Look.** `decide(experiment, Look(stage=..., epochs=book.look(watermark), now=..., started=..., stage_started=..., trip=...))` as often
   as wanted: every record, every second. `now` may be the watermark. A paused canary is not looked at.
5. **Verdict.** `hold` is not recorded. `advance`: open the next stage's epoch, then publish its shares. `promote`, `rollback` and `expire`
   end the experiment. `decision.numbers` is the JSON of the verdict, `decision.alpha_before` and `alpha_after` its budget; what is held
   back (`reason`) says what it waits for. A final test has opened as soon as the last stage's first record is written.
6. **Trip-wires.** Fold the canary's requests into `tripwires.Health`, and give `tripped(health)` to the next look.
"""
