//! The routes that one connection remembers, as long as nothing changes in its namespace.

use crate::metadata::Route;
use std::collections::HashMap;
use std::sync::Arc;

/// Routes that a connection remembers.
const ROUTES_MAX: usize = 4096;

type ByKey = HashMap<Box<[u8]>, Arc<Route>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    version: u64,
    entries: usize,
    routes: HashMap<Box<str>, ByKey>,
}

impl RouteCache {
    /// The route, if it is remembered of this version.
    pub fn get(&mut self, version: u64, exchange: &str, key: &[u8]) -> Option<Arc<Route>> {
        if self.version != version {
            self.clear(version);
            return None;
        }
        self.routes.get(exchange)?.get(key).cloned()
    }

    fn clear(&mut self, version: u64) {
        self.version = version;
        self.routes.clear();
        self.entries = 0;
    }

    /// Remembers a route.
    pub fn put(&mut self, version: u64, exchange: &str, key: &[u8], route: Arc<Route>) {
        if self.version != version || self.entries >= ROUTES_MAX {
            self.clear(version);
        }
        self.entries += 1;
        self.routes.entry(exchange.into()).or_default().insert(key.into(), route);
    }
}
