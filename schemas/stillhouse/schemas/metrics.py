"""Every metric name, in one typed list. Append-only: dashboards and alerts name them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric. Counters are rates (a replay counts again); books are computed from tables and DLQ keys."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: tuple[Metric, ...] = (
    # ingest
    Metric("stillhouse_ingest_events_total", "counter", "Events read and decoded.", ("source",)),
    Metric("stillhouse_ingest_bytes_total", "counter", "Bytes of record values read."),
    Metric("stillhouse_ingest_dlq_total", "counter", "Records sent to the DLQ, by reason.", ("source", "reason")),
    Metric("stillhouse_ingest_client_dropped_total", "counter", "What clients reported that they could not send, by reason.", ("reason",)),
    Metric("stillhouse_ingest_flagged_total", "counter", "Rows stored with a flaw, by what it is.", ("reason",)),
    Metric("stillhouse_ingest_rows_total", "counter", "Rows written, by status.", ("status",)),
    Metric("stillhouse_ingest_unchanged_total", "counter", "Trajectories flushed whose events were all stored already."),
    Metric("stillhouse_ingest_conflicts_total", "counter", "Rows that another worker had changed in between: folded again."),
    Metric("stillhouse_ingest_flushes_total", "counter", "Flushes, by what caused them.", ("cause",)),
    Metric("stillhouse_ingest_flush_seconds", "histogram", "Time of a flush from read to commit."),
    Metric("stillhouse_ingest_store_errors_total", "counter", "Attempts that failed because the store or the broker was away."),
    Metric("stillhouse_ingest_open_trajectories", "gauge", "Trajectories with unflushed events."),
    Metric("stillhouse_ingest_open_bytes", "gauge", "Bytes of unflushed events in memory."),
    Metric("stillhouse_ingest_position", "gauge", "Read position: progress, lag and autoscaling go by it.", ("partition",)),
    Metric("stillhouse_ingest_lag", "gauge", "Records between the read position and the end.", ("partition",)),
    Metric("stillhouse_ingest_replay_debt", "gauge", "Read position minus commit: what a crash would read again.", ("partition",)),
    Metric("stillhouse_ingest_watermark_seconds", "gauge", "Watermark (Unix time).", ("partition",)),
    Metric("stillhouse_ingest_paused", "gauge", "1 while the store is away and partitions are paused."),
    Metric("stillhouse_ingest_stopped_partitions", "gauge", "Partitions stopped by a flood that has no source."),
    Metric("stillhouse_ingest_commit_failures_total", "counter", "Commits refused because the group had moved on."),
    Metric("stillhouse_ingest_dlq_cut_total", "counter", "Dead letters that hold only the beginning of a record too large for the DLQ."),
    Metric("stillhouse_ingest_facts_cut_total", "counter", "Facts too large for a message: cut, or withheld (only the row).", ("how",)),
    Metric("stillhouse_store_maintenance_seconds", "histogram", "Time of a maintenance run of one table.", ("table",)),
    # signals
    Metric("stillhouse_signals_records_total", "counter", "Records of the topic trajectories: facts, watermarks.", ("kind",)),
    Metric("stillhouse_signals_dlq_total", "counter", "Records of it sent to the DLQ, by reason.", ("reason",)),
    Metric("stillhouse_signals_looks_total", "counter", "Looks at the store."),
    Metric("stillhouse_signals_look_seconds", "histogram", "Time of a look."),
    Metric("stillhouse_signals_errors_total", "counter", "Looks that ended because the store or the broker was away."),
    Metric("stillhouse_signals_window_requests_total", "counter", "Windows asked for, by reason.", ("reason",)),
    Metric("stillhouse_signals_tasks_total", "counter", "Tasks issued to the teacher.", ("kind", "family")),
    Metric("stillhouse_signals_passed", "gauge", "Failures that the last look did not issue, by reason.", ("reason",)),
    Metric("stillhouse_signals_failure_rate", "gauge", "Share of a family's student runs that failed.", ("route", "family")),
    Metric("stillhouse_signals_budget_left", "gauge", "Tasks that may still be issued today.", ("route", "family")),
    Metric("stillhouse_signals_watermark_seconds", "gauge", "How far all events were read, as this worker heard (Unix time)."),
    # student server
    Metric("stillhouse_student_busy_seconds_total", "counter", "Seconds in which the model computed: the marginal cost of students."),
    Metric("stillhouse_student_requests_total", "counter", "Requests answered, by endpoint and HTTP status.", ("endpoint", "code")),
    Metric("stillhouse_student_request_seconds", "histogram", "Time of a request from its arrival to its last byte.", ("endpoint",)),
    Metric("stillhouse_student_format_errors_total", "counter", "Replies that are no action of the student's grammar.", ("student",)),
    Metric("stillhouse_student_tokens_total", "counter", "Tokens: prefilled, reused from the cache, generated.", ("kind",)),
    Metric("stillhouse_student_steps_total", "counter", "Steps of the model loop."),
    Metric("stillhouse_student_batch_rows", "histogram", "Sequences in a step."),
    Metric("stillhouse_student_kv_bytes", "gauge", "Bytes of keys and values kept for later requests."),
    Metric("stillhouse_student_kv_evicted_tokens_total", "counter", "Tokens whose keys and values made room for others."),
    Metric("stillhouse_student_waiting_requests", "gauge", "Generations that wait for a place in the batch."),
    Metric("stillhouse_student_running_requests", "gauge", "Generations in the batch."),
    Metric("stillhouse_student_adapters", "gauge", "Adapters loaded."),
    # canary
    Metric("stillhouse_canary_running", "gauge", "1 while a student is on trial.", ("route",)),
    Metric("stillhouse_canary_paused", "gauge", "1 while the canary stays at its share.", ("route",)),
    Metric("stillhouse_canary_share", "gauge", "Share of units that go to the canary.", ("route",)),
    Metric("stillhouse_canary_stage", "gauge", "Stage of the canary's ramp, 0 is the first.", ("route",)),
    Metric("stillhouse_canary_epoch", "gauge", "Times that the allocation has changed within the experiment.", ("route",)),
    Metric("stillhouse_canary_final_tests", "gauge", "Versions of the route whose final test has opened.", ("route",)),
    Metric(
        "stillhouse_canary_units", "gauge", "Units of the running canary by arm: assigned, matured, judged.", ("route", "variant", "stage")
    ),
    Metric("stillhouse_canary_excluded_units", "gauge", "Units in no arm because their assignment was broken.", ("route", "reason")),
    Metric("stillhouse_canary_matured_units", "gauge", "Matured canary units of all epochs.", ("route",)),
    Metric("stillhouse_canary_stage_units", "gauge", "Judged canary units of the present stage.", ("route",)),
    Metric("stillhouse_canary_age_seconds", "gauge", "Age of the canary by the watermark.", ("route",)),
    Metric("stillhouse_canary_stage_age_seconds", "gauge", "Age of the present stage by the watermark.", ("route",)),
    Metric(
        "stillhouse_canary_alpha",
        "gauge",
        "Error rates: of a crown, of a rollback, of the route's lifetime before and after this version.",
        ("route", "reason"),
    ),
    Metric("stillhouse_canary_test_units", "gauge", "Units that a comparison counts.", ("route", "score", "against", "variant")),
    Metric(
        "stillhouse_canary_difference",
        "gauge",
        "Canary minus reference, a score from 0 to 1, higher is better.",
        ("route", "score", "against"),
    ),
    Metric(
        "stillhouse_canary_lower_bound",
        "gauge",
        "Lower bound of the difference: crowns above minus the margin.",
        ("route", "score", "against"),
    ),
    Metric("stillhouse_canary_upper_bound", "gauge", "Upper bound of the difference at the crown's alpha.", ("route", "score", "against")),
    Metric(
        "stillhouse_canary_rollback_upper_bound",
        "gauge",
        "Upper bound of the difference at the rollback's alpha.",
        ("route", "score", "against"),
    ),
    Metric("stillhouse_canary_rollback_below", "gauge", "A rollback's upper bound below this rolls back.", ("route", "score", "against")),
    Metric("stillhouse_canary_margin", "gauge", "How much worse is accepted.", ("route", "score", "against")),
    Metric("stillhouse_canary_sample_ratio_units", "gauge", "Units whose split between the arms is checked.", ("route", "stage")),
    Metric("stillhouse_canary_sample_ratio_excess", "gauge", "Canary units beyond their expected number.", ("route", "stage")),
    Metric("stillhouse_canary_sample_ratio_limit", "gauge", "Excess that chance allows.", ("route", "stage")),
    Metric("stillhouse_canary_coverage_difference", "gauge", "Outcome coverage, canary minus reference.", ("route", "against")),
    Metric("stillhouse_canary_coverage_lower_bound", "gauge", "Lower bound of the difference in outcome coverage.", ("route", "against")),
    Metric("stillhouse_canary_coverage_upper_bound", "gauge", "Upper bound of the difference in outcome coverage.", ("route", "against")),
    Metric("stillhouse_canary_coverage_margin", "gauge", "Difference in outcome coverage that is accepted.", ("route", "against")),
    Metric("stillhouse_canary_cost_per_success_usd", "gauge", "USD per success with Fieller's interval.", ("route", "variant", "bound")),
    Metric("stillhouse_canary_cost_ratio", "gauge", "Cost of a canary unit over a teacher's, with Fieller's interval.", ("route", "bound")),
    Metric(
        "stillhouse_canary_decisions_total",
        "counter",
        "Decisions that were followed, by verdict and reason.",
        ("route", "verdict", "reason"),
    ),
    Metric("stillhouse_canary_conflicts_total", "counter", "Decisions that lost to another author's.", ("route",)),
    Metric("stillhouse_canary_looks_total", "counter", "Looks at all routes."),
    Metric("stillhouse_canary_watermark_seconds", "gauge", "How far all events were read (Unix time)."),
    Metric("stillhouse_canary_lag_seconds", "gauge", "Wall clock minus watermark: decisions wait for it."),
    Metric("stillhouse_canary_errors_total", "counter", "Looks that ended because the broker was away."),
    # gateway
    Metric("stillhouse_gateway_requests_total", "counter", "Chat requests by who answered and HTTP status.", ("route", "variant", "code")),
    Metric("stillhouse_gateway_request_seconds", "histogram", "Time of a chat request to its last byte.", ("route", "variant")),
    Metric("stillhouse_gateway_rejected_total", "counter", "Requests refused before they reached a variant, by reason.", ("reason",)),
    Metric("stillhouse_gateway_teacher_errors_total", "counter", "Requests that the teacher failed, by reason.", ("route", "reason")),
    Metric("stillhouse_gateway_fallbacks_total", "counter", "Requests that a student failed, by reason.", ("route", "student", "reason")),
    Metric(
        "stillhouse_gateway_diverted_total",
        "counter",
        "Requests that another than their arm's student served: uncovered, not_ready, taken_over, unenrolled.",
        ("route", "reason"),
    ),
    Metric("stillhouse_gateway_tokens_total", "counter", "Tokens by who took them, and kind.", ("route", "variant", "kind")),
    Metric("stillhouse_gateway_cost_micro_usd_total", "counter", "Millionths of a dollar spent.", ("route", "variant")),
    Metric(
        "stillhouse_gateway_unpriced_total", "counter", "Answers with tokens that cost nothing: a price is missing.", ("route", "variant")
    ),
    Metric("stillhouse_gateway_estimated_total", "counter", "Answers whose tokens the upstream did not say.", ("route", "variant")),
    Metric("stillhouse_gateway_capture_refused_total", "counter", "Events that the capture did not take."),
    Metric("stillhouse_gateway_memory_errors_total", "counter", "Commits of the gateway's memory that failed."),
    Metric("stillhouse_gateway_outcomes_total", "counter", "Outcomes taken, by source.", ("source",)),
    Metric("stillhouse_gateway_open_requests", "gauge", "Chat requests under way."),
    Metric("stillhouse_gateway_students_offset", "gauge", "Offset of the last decision that the gateway follows.", ("route",)),
    Metric("stillhouse_gateway_student_refused", "gauge", "1 when the last attestation refused a student.", ("route", "student")),
    Metric(
        "stillhouse_gateway_rollbacks_total",
        "counter",
        "Canaries that this gateway rolled back, by reason.",
        ("route", "student", "reason"),
    ),
    Metric("stillhouse_gateway_student_ready", "gauge", "1 when a student is loaded, warmed and attested.", ("route", "student")),
    # trainer
    Metric("stillhouse_trainer_looks_total", "counter", "Looks at what a window would be made of."),
    Metric(
        "stillhouse_trainer_errors_total", "counter", "Looks that could not be made: store or broker away, settings that cannot be read."
    ),
    Metric(
        "stillhouse_trainer_jobs_total", "counter", "Jobs by how they ended: registered, rejected, failed, failed_passing.", ("reason",)
    ),
    Metric("stillhouse_trainer_running", "gauge", "1 while a job runs."),
    Metric("stillhouse_trainer_failures_in_a_row", "gauge", "Jobs that have failed since one went through."),
    Metric("stillhouse_trainer_new_successes", "gauge", "Teacher successes that no window has looked at."),
    Metric("stillhouse_trainer_oldest_success_age_seconds", "gauge", "Age of the oldest of them."),
    Metric("stillhouse_trainer_requests", "gauge", "Requests for a window that none has answered."),
    Metric("stillhouse_trainer_step", "gauge", "Optimizer step of the running or last training."),
    Metric("stillhouse_trainer_steps", "gauge", "Steps that it has."),
    Metric("stillhouse_trainer_loss", "gauge", "Its last training loss, nats a token."),
)
"""A comment heads each plane's part."""


def metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        KeyError: it is not in the list.
    """
    return next(found for found in METRICS if found.name == name)
