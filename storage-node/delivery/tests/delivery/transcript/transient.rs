//! The commands of transient queues.

use super::{Story, Words, connection, session};
use crate::support::record;
use bytes::{Bytes, BytesMut};
use longshore_delivery::TransientDeclare;
use longshore_wire::record::Record;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, NamespaceId, Offset};

impl Story {
    pub(super) fn transient(&mut self, words: &Words<'_>, said: &mut Vec<String>) -> bool {
        let now = self.world.now;
        match words.plain[0] {
            "declare" => {
                let (asker, name) = (connection(words.plain[1]), words.plain[2]);
                let spec = LogSpec { ttl_ms: words.number("ttl"), ..LogSpec::QUEUE };
                let declare = TransientDeclare {
                    namespace: NamespaceId(1),
                    name: Bytes::copy_from_slice(name.as_bytes()),
                    owner: words.has("exclusive").then_some(asker),
                    auto_delete: words.has("auto-delete"),
                    arguments: Bytes::copy_from_slice(words.keyed.get("args").unwrap_or(&"").as_bytes()),
                    spec,
                    expires_ms: words.number("expires").unwrap_or(0),
                    single_active: words.has("single-active"),
                };
                let result = self.world.delivery.transient_declare(now, asker, declare);
                if let Ok(info) = &result {
                    self.logs.insert(name.to_string(), info.log);
                }
                said.push(result.map_or_else(
                    |refused| format!("refused {refused:?}"),
                    |info| if info.created { "created".into() } else { "exists".into() },
                ));
            }
            "find" => {
                if words.has("use") {
                    self.world.delivery.transient_use(now, NamespaceId(1), words.plain[1].as_bytes());
                }
                let found = self.world.delivery.transient_find(NamespaceId(1), words.plain[1].as_bytes());
                said.push(found.map_or("unknown".into(), |info| Story::show_counts(&info.counts)));
            }
            "send" => self.send(words, said),
            "tack" | "treturn" => {
                let offsets: Vec<Offset> = words.plain[3..].iter().map(|body| self.place(body).1).collect();
                let (from, log) = (session(words.plain[1]), self.log(words.plain[2]));
                let (acked, returned) =
                    if words.plain[0] == "tack" { (&offsets[..], &[][..]) } else { (&[][..], &offsets[..]) };
                self.world.delivery.transient_settle(from, log, acked, returned);
            }
            "delete" => {
                let (if_unused, if_empty) = (words.has("if-unused"), words.has("if-empty"));
                let log = self.log(words.plain[1]);
                let result = self.world.delivery.transient_delete(log, if_unused, if_empty);
                said.push(result.map_or_else(
                    |refused| format!("refused {refused:?}"),
                    |count| format!("deleted with {count} messages"),
                ));
            }
            "delete-owned" => {
                let (from, owner) = connection(words.plain[1]);
                let count = self.world.delivery.transient_delete_owned(from, owner);
                said.push(format!("{count} queues deleted"));
            }
            "tpurge" => {
                let count = self.world.delivery.transient_purge(self.log(words.plain[1]));
                said.push(format!("purged {count:?}"));
            }
            _ => return false,
        }
        true
    }

    fn send(&mut self, words: &Words<'_>, said: &mut Vec<String>) {
        let (body, names) = words.plain[1..].split_last().unwrap();
        let targets: Vec<LogId> = names.iter().map(|name| self.log(name)).collect();
        let mut bytes = BytesMut::new();
        let how = Story::options(words);
        record(&targets, how).encode(&[Bytes::copy_from_slice(body.as_bytes())], &mut bytes).unwrap();
        let record = Record::parse(bytes.freeze()).unwrap();
        let log_time = self.world.log_time();
        let result = self.world.delivery.transient_append(log_time, record, Vec::new());
        let named = |log: &LogId| self.logs.iter().find(|(_, id)| *id == log).unwrap().0.clone();
        said.extend(result.missing.iter().map(|log| format!("{} is missing", named(log))));
        said.extend(result.full.iter().map(|log| format!("{} is full", named(log))));
    }
}
