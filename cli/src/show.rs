//! What the management API answers, for a reader at a terminal.

use serde_json::Value;

/// One value in a line: lists by comma, the fields of an object by name.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name} {}", plain(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    }
}

/// A list of objects as columns, in the order in which their fields came.
pub fn table(answer: &Value) -> String {
    let rows = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    let cell = |row: &Value, column: &str| row.get(column).map(plain).unwrap_or_default();
    let header = columns.iter().map(|column| (*column).to_owned()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect());
    aligned(&std::iter::once(header).chain(cells).collect::<Vec<Vec<String>>>())
}

/// Lines of cells, each column as wide as its widest.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut out = String::new();
    for line in lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out += padded.join("  ").trim_end();
        out.push('\n');
    }
    out
}

/// Why a queue's messages are not being delivered.
pub fn explanation(answer: &Value) -> String {
    let of = |name: &str| answer.get(name).map(plain).unwrap_or_default();
    let kind = if answer["durable"] == true { "durable" } else { "transient" };
    let leader = match &answer["leader"] {
        Value::Null => "without a leader".to_owned(),
        leader => format!("led by node {} in term {}", plain(&leader["node"]), plain(&leader["term"])),
    };
    let delivery = &answer["delivery"];
    let count = |name: &str| delivery.get(name).map(plain).unwrap_or_default();
    let mut facts = vec![
        ["queue".to_owned(), format!("{}, {kind}, in virtual host {}", of("queue"), of("namespace"))],
        ["stored".to_owned(), format!("log {} of shard {}, {leader}", of("log"), of("shard"))],
    ];
    if delivery.get("ready").is_some() {
        let messages =
            format!("{} ready, {} unacked, {} delayed", count("ready"), count("unacked"), count("delayed"));
        facts.push(["messages".to_owned(), messages]);
        facts.push(["consumers".to_owned(), count("consumers")]);
    }
    if !answer["publishes_blocked"].is_null() {
        facts.push(["publishes".to_owned(), format!("blocked: {}", of("publishes_blocked"))]);
    }
    let facts: Vec<Vec<String>> = facts.into_iter().map(Vec::from).collect();
    let reasons = match &delivery["reasons"] {
        Value::Array(reasons) => reasons.iter().map(reason).collect(),
        _ => vec![vec![count("reason"), count("error")]],
    };
    let why =
        if reasons.is_empty() { "nothing holds its messages back\n".to_owned() } else { aligned(&reasons) };
    format!("{}\n{why}", aligned(&facts))
}

/// A reason's word, and its text with the particulars behind it.
fn reason(reason: &Value) -> Vec<String> {
    let field = |name: &str| reason.get(name).map(plain).unwrap_or_default();
    let fields = reason.as_object().into_iter().flatten();
    let particulars: Vec<String> = fields
        .filter(|(name, value)| !["reason", "text"].contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    let text = match particulars.is_empty() {
        true => field("text"),
        false => format!("{} ({})", field("text"), particulars.join(", ")),
    };
    vec![field("reason"), text]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_become_columns_in_their_own_order() {
        let rows = json!([
            {"name": "q", "messages": 12, "at": ["a", "b"]},
            {"name": "longer", "messages": 3, "at": []},
        ]);
        assert_eq!(table(&rows), "name    messages  at\nq       12        a, b\nlonger  3\n");
        assert_eq!(table(&json!([])), "none\n");
    }

    #[test]
    fn an_explanation_is_told_in_lines() {
        let told = explanation(&json!({
            "queue": "q", "namespace": "/", "durable": true, "shard": 4, "log": 7,
            "leader": {"node": 2, "term": 3}, "publishes_blocked": null,
            "delivery": {
                "ready": 1, "unacked": 2, "delayed": 0, "consumers": 1,
                "reasons": [
                    {"reason": "no_credit", "text": "they must ack first"},
                    {"reason": "leased", "text": "out", "offset": 5, "by": {"session": 1, "consumer": 9}, "in_ms": null},
                ],
            },
        }));
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "queue      q, durable, in virtual host /",
                "stored     log 7 of shard 4, led by node 2 in term 3",
                "messages   1 ready, 2 unacked, 0 delayed",
                "consumers  1",
                "",
                "no_credit  they must ack first",
                "leased     out (offset 5, by session 1 consumer 9)",
            ]
        );
    }

    #[test]
    fn a_shard_without_a_leader_is_told_too() {
        let told = explanation(&json!({
            "queue": "q", "namespace": "/", "durable": true, "shard": 4, "log": 7, "leader": null,
            "publishes_blocked": "disk", "delivery": {"reason": "no leader", "error": "no leader is known"},
        }));
        assert!(told.contains("without a leader") && told.contains("blocked: disk"), "{told}");
        assert!(told.ends_with("no leader  no leader is known\n"), "{told}");
    }
}
