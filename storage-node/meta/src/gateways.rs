//! Gateway sessions and what goes with them: claims on queue names, and bindings.
//! Danger: a session's id is never given twice, or a shard would take an old gateway's batch for a new one's.
//! Called by `apply`.

use crate::Meta;
use crate::apply::{Decided, refusal, room, valid};
use crate::limits::{ADDRESSES_MAX, GATEWAYS_MAX, NAME_BYTES_MAX};
use longshore_proto::v1::{Gateway, MetaError, MetaReply, OpenGateway};

impl Meta {
    pub(crate) fn open_gateway(&mut self, open: OpenGateway) -> Decided {
        let OpenGateway { name, addresses } = open;
        valid(name.len() <= NAME_BYTES_MAX, "a gateway's name has at most 255 bytes")?;
        let fits = addresses.len() <= ADDRESSES_MAX && addresses.iter().all(|a| a.len() <= NAME_BYTES_MAX);
        valid(fits, "a gateway has at most 32 addresses of 255 bytes")?;
        room(self.gateways.len(), GATEWAYS_MAX, "gateways")?;
        self.numbers.last_session += 1;
        let session = self.numbers.last_session;
        self.put_gateway(Gateway { session, name, addresses });
        Ok(MetaReply { session, created: true, ..MetaReply::default() })
    }

    pub(crate) fn close_gateway(&mut self, session: u64) -> Decided {
        if !self.gateways.contains_key(&session) {
            return Err(refusal(MetaError::MetaSession, format!("gateway session {session} is over")));
        }
        self.drop_owned(session, None);
        self.drop_gateway(session);
        Ok(MetaReply { session, ..MetaReply::default() })
    }

    /// A client connection ended.
    pub(crate) fn drop_owner(&mut self, session: u64, owner: u64) -> Decided {
        valid(session != 0 && owner != 0, "an owner has a session and a number")?;
        self.check_session(session)?;
        self.drop_owned(session, Some(owner));
        Ok(MetaReply::default())
    }

    fn drop_owned(&mut self, session: u64, owner: Option<u64>) {
        let bindings = self.bindings.owned(session, owner);
        self.drop_bindings(bindings);
        let first = (session, owner.unwrap_or(0), (0, String::new()));
        let all = self.claims.range(first..);
        let ours = all.take_while(|(s, o, _)| *s == session && owner.is_none_or(|owner| owner == *o));
        let queues: Vec<_> = ours.map(|(_, _, key)| key.clone()).collect();
        for key in queues {
            self.drop_bindings_into(key.0, false, &key.1);
            self.drop_queue(&key);
        }
    }
}
