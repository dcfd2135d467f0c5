//! Namespaces, users and their permissions.
//!
//! Danger: whether a pattern is a regular expression is not decided here: libraries differ between versions, and
//! replicas must not. The gateway checks it before. Called by `apply`.

use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{
    NAME_BYTES_MAX, NAMESPACES_MAX, PASSWORD_HASH_BYTES_MAX, PATTERN_BYTES_MAX, USERS_MAX, VERIFIER_BYTES_MAX,
};
use crate::{Meta, PREDECLARED};
use bytes::Bytes;
use longshore_proto::v1::{Exchange, MetaError, MetaReply, Namespace, PutUser, User};
use std::collections::BTreeSet;

impl Meta {
    pub(crate) fn make_namespace(&mut self, name: String) -> Decided {
        valid(!name.is_empty() && name.len() <= NAME_BYTES_MAX, "a namespace's name has 1 to 255 bytes")?;
        if let Some(known) = self.namespace(&name) {
            return Ok(MetaReply { namespace: known.id, ..MetaReply::default() });
        }
        room(self.namespaces.len(), NAMESPACES_MAX, "namespaces")?;
        let id = self.numbers.last_namespace.saturating_add(1);
        self.numbers.last_namespace = id;
        self.put_namespace(Namespace { id, name });
        for (name, kind) in PREDECLARED {
            self.put_exchange(Exchange {
                namespace: id,
                name: name.to_owned(),
                kind: kind.to_owned(),
                durable: true,
                auto_delete: false,
                internal: false,
                arguments: Bytes::new(),
                alternate: String::new(),
            });
        }
        Ok(MetaReply { namespace: id, created: true, ..MetaReply::default() })
    }

    /// Everything in it goes; queues one by one, for their tombstones.
    pub(crate) fn delete_namespace(&mut self, name: &str) -> Decided {
        let Some(id) = self.namespace(name).map(|known| known.id) else {
            return Err(refusal(MetaError::MetaNotFound, format!("no namespace '{name}'")));
        };
        for binding in self.bindings.of_namespace(id) {
            self.drop_binding_silently(binding);
        }
        let here = (id, String::new())..(id + 1, String::new());
        let queues: Vec<_> = self.queues.range(here.clone()).map(|(key, _)| key.clone()).collect();
        for key in queues {
            self.drop_queue(&key);
        }
        let exchanges: Vec<_> = self.exchanges.range(here).map(|(key, _)| key.clone()).collect();
        for key in exchanges {
            self.drop_exchange_silently(key);
        }
        let permitted = |user: &&User| user.permissions.iter().any(|permission| permission.namespace == id);
        let users: Vec<_> = self.users.values().filter(permitted).cloned().collect();
        for mut user in users {
            user.permissions.retain(|permission| permission.namespace != id);
            self.put_user(user);
        }
        self.drop_namespace(id);
        Ok(MetaReply { namespace: id, ..MetaReply::default() })
    }

    pub(crate) fn set_user(&mut self, put: PutUser) -> Decided {
        let mut user = given(put.user, "no user given")?;
        self.check_user(&user)?;
        let old = self.users.get(&user.name);
        if old.is_none() {
            if put.permissions_only || put.keep_password {
                return Err(refusal(MetaError::MetaNotFound, format!("no user '{}'", user.name)));
            }
            room(self.users.len(), USERS_MAX, "users")?;
        }
        let created = old.is_none();
        if let Some(old) = old {
            if put.permissions_only {
                user = User { permissions: user.permissions, ..old.clone() };
            } else if put.keep_password {
                user.password_hash.clone_from(&old.password_hash);
                user.scram_sha_256.clone_from(&old.scram_sha_256);
                user.scram_sha_512.clone_from(&old.scram_sha_512);
            }
        }
        self.put_user(user);
        Ok(MetaReply { created, ..MetaReply::default() })
    }

    pub(crate) fn check_user(&self, user: &User) -> Result<(), Box<MetaReply>> {
        valid(
            !user.name.is_empty() && user.name.len() <= NAME_BYTES_MAX,
            "a user's name has 1 to 255 bytes",
        )?;
        valid(user.default_namespace.len() <= NAME_BYTES_MAX, "a namespace's name has 1 to 255 bytes")?;
        valid(user.password_hash.len() <= PASSWORD_HASH_BYTES_MAX, "the password hash is too long")?;
        for verifier in [&user.scram_sha_256, &user.scram_sha_512].into_iter().flatten() {
            let longest = verifier.salt.len().max(verifier.stored_key.len()).max(verifier.server_key.len());
            valid(longest <= VERIFIER_BYTES_MAX, "a SCRAM verifier is too long")?;
        }
        let mut seen = BTreeSet::new();
        for permission in &user.permissions {
            let longest = permission.configure.len().max(permission.write.len()).max(permission.read.len());
            valid(longest <= PATTERN_BYTES_MAX, "a permission's pattern has at most 1024 bytes")?;
            valid(seen.insert(permission.namespace), "two permissions for one namespace")?;
            if !self.namespaces.contains_key(&permission.namespace) {
                return Err(refusal(
                    MetaError::MetaNotFound,
                    "a permission is for a namespace that does not exist",
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn delete_user(&mut self, name: &str) -> Decided {
        if !self.users.contains_key(name) {
            return Err(refusal(MetaError::MetaNotFound, format!("no user '{name}'")));
        }
        self.drop_user(name);
        Ok(MetaReply::default())
    }
}
