//! Why a queue's messages are not being delivered, as JSON: a leader's part of `longshore explain`.
//!
//! `reasons` is a list of objects whose `reason` is a stable word; times are milliseconds from now (`in_ms`).

use longshore_delivery::{ConsumerKey, Explanation, Reason};
use longshore_io::Mono;
use longshore_wire::LogTime;
use serde_json::{Value, json};

/// The explanation as a JSON object.
pub(crate) fn json(explanation: &Explanation, now: Mono, log_time: LogTime) -> String {
    let counts = &explanation.counts;
    let reasons: Vec<Value> = explanation.reasons.iter().map(|reason| one(reason, now, log_time)).collect();
    json!({
        "ready": counts.ready, "unacked": counts.unacked, "delayed": counts.delayed, "consumers": counts.consumers,
        "first_offset": counts.first.0, "next_offset": counts.next.0, "reasons": reasons,
    })
    .to_string()
}

fn who(key: &ConsumerKey) -> Value {
    json!({"session": key.session.0, "consumer": key.consumer})
}

fn one(reason: &Reason, now: Mono, log_time: LogTime) -> Value {
    let in_ms = |until: Mono| until.since(now) / 1_000;
    let log_in_ms = |until: LogTime| until.0.saturating_sub(log_time.0);
    match reason {
        Reason::NotLeader => json!({"reason": "no_leader", "text": "this replica does not lead the shard"}),
        Reason::LeaseNotHeld => {
            json!({"reason": "no_majority", "text": "no majority of the replicas answers the leader"})
        }
        Reason::NoSuchLog => {
            json!({"reason": "no_such_log", "text": "the log does not exist here, or was dropped"})
        }
        Reason::Empty => json!({"reason": "empty", "text": "there is no message"}),
        Reason::NoConsumer => json!({"reason": "no_consumer", "text": "nobody consumes from the queue"}),
        Reason::NoCredit { consumers } => json!({
            "reason": "no_credit", "text": "every consumer's prefetch is used up: they must ack first",
            "consumers": consumers.iter().map(who).collect::<Vec<_>>(),
        }),
        Reason::SingleActiveStandby { active, standing_by } => json!({
            "reason": "single_active", "text": "one consumer is served, the others stand by",
            "active": who(active), "standing_by": standing_by,
        }),
        Reason::Suspended { consumers } => json!({
            "reason": "gateway_away", "text": "the stream of the consumers' gateway broke", "consumers": consumers,
        }),
        Reason::WaitingForGateways { sessions, until } => json!({
            "reason": "waiting_for_gateways", "text": "the leader is new and waits to hear what the gateways hold",
            "sessions": sessions, "in_ms": in_ms(*until),
        }),
        Reason::Delayed { until, count } => json!({
            "reason": "delayed", "text": "messages are not visible before their time",
            "until_ms": until.0, "in_ms": log_in_ms(*until), "count": count,
        }),
        Reason::Leased { offset, by, until, ending } => json!({
            "reason": "leased", "text": if by.consumer == 0 { "out with a basic.get" } else { "out with a consumer that has not settled it" },
            "offset": offset.0, "by": who(by), "in_ms": until.map(in_ms), "ending": ending,
        }),
        Reason::Taken { offset, until } => json!({
            "reason": "taken", "text": "received, and not visible again before its time",
            "offset": offset.0, "until_ms": until.0, "in_ms": log_in_ms(*until),
        }),
        Reason::Expired { offset, count } => json!({
            "reason": "expired", "text": "the time to live ended", "offset": offset.0, "count": count,
        }),
        Reason::RowsLoading { from } => json!({
            "reason": "loading", "text": "the next messages are being read from disk", "from": from.0,
        }),
        Reason::TooManyLeases { max } => json!({
            "reason": "too_many_leases", "text": "the shard's bound on messages that are out is reached", "max": max,
        }),
    }
}
