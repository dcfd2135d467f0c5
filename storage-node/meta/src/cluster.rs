//! Forming the cluster, and its storage nodes: who they are, where they are, and which of them are gone.
//!
//! Danger: a node that lost its memory must come back as another one (`replicas` says why). Called by `apply`.

use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{IDENTITY_BYTES_MAX, NAME_BYTES_MAX, NODES_MAX, SHARDS_MAX};
use crate::placement::first_nodes;
use crate::replicas::replica;
use crate::{FORMAT, Meta};
use longshore_proto::v1::{Cluster, FormCluster, MetaError, MetaReply, RegisterNode, Shard, StorageNode};
use std::collections::BTreeSet;

fn check_node(node: &StorageNode) -> Result<(), Box<MetaReply>> {
    let longest = node.address.len().max(node.zone.len()).max(node.version.len());
    valid(longest <= NAME_BYTES_MAX && !node.address.is_empty(), "a node's address has 1 to 255 bytes")?;
    valid(node.identity.len() <= IDENTITY_BYTES_MAX, "a node's identity is too long")
}

impl Meta {
    /// Once, by the node that found all others empty. A second time is refused unless it names the same cluster.
    pub(crate) fn form_cluster(&mut self, form: FormCluster) -> Decided {
        if let Some(known) = &self.cluster {
            if known.id == form.cluster {
                return Ok(MetaReply::default());
            }
            return Err(refusal(MetaError::MetaExists, format!("this is cluster {} already", known.id)));
        }
        let administrator = given(form.administrator, "a cluster begins with an administrator")?;
        let shards = form.shards;
        valid(
            !form.cluster.is_empty() && form.cluster.len() <= NAME_BYTES_MAX,
            "a cluster's id has 1 to 255 bytes",
        )?;
        valid((1..=SHARDS_MAX).contains(&shards), "a cluster has 1 to 256 shards")?;
        valid(!form.nodes.is_empty() && form.nodes.len() <= NODES_MAX, "a cluster has 1 to 64 nodes")?;
        let mut ids = BTreeSet::new();
        for node in &form.nodes {
            check_node(node)?;
            valid(node.id != 0 && ids.insert(node.id), "nodes have different ids, from 1 on")?;
        }
        let permitted = administrator.permissions.iter().all(|p| p.namespace == crate::ROOT_NAMESPACE);
        valid(permitted, "the administrator's permissions are for namespace 1")?;
        let bare = longshore_proto::v1::User { permissions: Vec::new(), ..administrator.clone() };
        self.check_user(&bare)?;

        self.numbers.last_node = ids.last().copied().unwrap_or(0);
        self.put_cluster(Cluster { id: form.cluster, shards, format: FORMAT, sessions_given: 0 });
        for node in form.nodes {
            self.put_node(StorageNode { retired: false, ..node });
        }
        let nodes: Vec<StorageNode> = self.nodes.values().cloned().collect();
        for id in 0..=shards {
            let on = first_nodes(&nodes, id).into_iter();
            let replicas = on.map(|node| replica(node, 1, false)).collect();
            self.put_shard(Shard { id, replicas, revision: 0, incarnations: 1 });
        }
        self.make_namespace("/".to_owned())?;
        self.put_user(administrator);
        Ok(MetaReply { created: true, ..MetaReply::default() })
    }

    /// A node's identity decides who it is; a new one at an older one's address retires that.
    pub(crate) fn register_node(&mut self, register: RegisterNode) -> Decided {
        let mut node = given(register.node, "no node given")?;
        check_node(&node)?;
        valid(!node.identity.is_empty(), "a node has an identity")?;
        let known = self.nodes.values().find(|known| known.identity == node.identity);
        let (id, created) = match known {
            Some(known) if node.id != 0 && node.id != known.id => {
                return Err(refusal(MetaError::MetaInvalid, format!("this identity is node {}", known.id)));
            }
            Some(known) if known.retired => {
                let words = format!("node {} is retired; start it with an empty data directory", known.id);
                return Err(refusal(MetaError::MetaForbidden, words));
            }
            Some(known) => (known.id, false),
            None if node.id != 0 => {
                let words = format!(
                    "node {} is not of this cluster any more; start with an empty data directory",
                    node.id
                );
                return Err(refusal(MetaError::MetaForbidden, words));
            }
            None => {
                room(self.nodes.len(), NODES_MAX, "nodes")?;
                self.numbers.last_node = self.numbers.last_node.saturating_add(1);
                (self.numbers.last_node, true)
            }
        };
        node.id = id;
        node.retired = false;
        let elsewhere =
            |other: &&StorageNode| other.id != id && other.address == node.address && !other.retired;
        let older: Vec<u32> = self.nodes.values().filter(elsewhere).map(|other| other.id).collect();
        if let (Some(other), false) = (older.first(), created) {
            // An empty directory proves that the older one is gone; a node that moves proves nothing.
            let words = format!("node {other} is at {} already: check `storage.advertise`", node.address);
            return Err(refusal(MetaError::MetaInvalid, words));
        }
        for older in older {
            self.retire(older);
        }
        if self.nodes.get(&id) != Some(&node) {
            self.put_node(node);
        }
        Ok(MetaReply { node: id, created, ..MetaReply::default() })
    }

    pub(crate) fn retire_node(&mut self, node: u32) -> Decided {
        if !self.nodes.contains_key(&node) {
            return Err(refusal(MetaError::MetaNotFound, format!("no node {node}")));
        }
        self.retire(node);
        Ok(MetaReply { node, ..MetaReply::default() })
    }

    fn retire(&mut self, node: u32) {
        if let Some(known) = self.nodes.get(&node).filter(|known| !known.retired) {
            self.put_node(StorageNode { retired: true, ..known.clone() });
            self.dismiss_observer(node);
        }
        self.forget_empty(node);
    }

    /// A retired node without replicas is of no use to anyone.
    pub(crate) fn forget_empty(&mut self, node: u32) {
        let retired = self.nodes.get(&node).is_some_and(|known| known.retired);
        if retired && !self.shards.values().any(|shard| shard.replicas.iter().any(|r| r.node == node)) {
            self.drop_node(node);
        }
    }
}
