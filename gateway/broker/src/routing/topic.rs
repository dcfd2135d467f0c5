//! Topic patterns: words between dots, `*` for one word, `#` for any number of words. Byte strings.
//!
//! Matching walks a set of trie nodes word by word (as a nondeterministic automaton), so a pattern with many
//! `#` costs no more than nodes times words; a recursive walk would be exponential. The empty key has no words.

use super::destinations::{Dest, DestinationSet};
use std::collections::HashMap;

const ROOT: usize = 0;

#[derive(Debug, Default)]
struct Node {
    words: HashMap<Box<[u8]>, usize>,
    star: Option<usize>,
    hash: Option<usize>,
    /// This node is the `#` child of its parent, so any word leads back to it.
    is_hash: bool,
    dests: DestinationSet,
}

impl Node {
    fn is_unused(&self) -> bool {
        self.words.is_empty() && self.star.is_none() && self.hash.is_none() && self.dests.is_empty()
    }
}

/// The patterns of one topic exchange.
#[derive(Debug)]
pub struct TopicTrie {
    nodes: Vec<Node>,
    free: Vec<usize>,
}

impl Default for TopicTrie {
    fn default() -> Self {
        TopicTrie { nodes: vec![Node::default()], free: Vec::new() }
    }
}

fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut words = key.split(|b| *b == b'.');
    if key.is_empty() {
        words.next();
    }
    words
}

impl TopicTrie {
    fn child(&self, at: usize, word: &[u8]) -> Option<usize> {
        let node = &self.nodes[at];
        match word {
            b"*" => node.star,
            b"#" if node.is_hash => Some(at), // "#.#" is "#"
            b"#" => node.hash,
            word => node.words.get(word).copied(),
        }
    }

    fn make_child(&mut self, at: usize, word: &[u8]) -> usize {
        let new = Node { is_hash: word == b"#", ..Node::default() };
        let child = match self.free.pop() {
            Some(slot) => {
                self.nodes[slot] = new;
                slot
            }
            None => {
                self.nodes.push(new);
                self.nodes.len() - 1
            }
        };
        let node = &mut self.nodes[at];
        match word {
            b"*" => node.star = Some(child),
            b"#" => node.hash = Some(child),
            word => {
                node.words.insert(word.into(), child);
            }
        }
        child
    }

    /// Adds a binding with this pattern.
    pub fn add(&mut self, pattern: &[u8], dest: Dest) {
        let mut at = ROOT;
        for word in words(pattern) {
            at = match self.child(at, word) {
                Some(child) => child,
                None => self.make_child(at, word),
            };
        }
        self.nodes[at].dests.add(dest);
    }

    /// Removes a binding with this pattern, and the nodes that only it needed.
    pub fn remove(&mut self, pattern: &[u8], dest: &Dest) {
        let mut path = Vec::new();
        let mut at = ROOT;
        for word in words(pattern) {
            let Some(child) = self.child(at, word) else { return };
            if child != at {
                path.push((at, word));
            }
            at = child;
        }
        self.nodes[at].dests.remove(dest);
        while let Some((parent, word)) = path.pop() {
            if !self.nodes[at].is_unused() {
                return;
            }
            self.free.push(at);
            let node = &mut self.nodes[parent];
            match word {
                b"*" => node.star = None,
                b"#" => node.hash = None,
                word => {
                    node.words.remove(word);
                }
            }
            at = parent;
        }
    }

    /// Adds the destinations whose pattern matches `key` to `out`; one may come more than once.
    pub fn matches(&self, key: &[u8], out: &mut Vec<Dest>) {
        let mut now = Vec::new();
        self.reach(ROOT, &mut now);
        let mut next = Vec::new();
        for word in words(key) {
            for &at in &now {
                let node = &self.nodes[at];
                if node.is_hash {
                    next.push(at);
                }
                if let Some(child) = node.words.get(word) {
                    self.reach(*child, &mut next);
                }
                if let Some(child) = node.star {
                    self.reach(child, &mut next);
                }
            }
            next.sort_unstable();
            next.dedup();
            std::mem::swap(&mut now, &mut next);
            next.clear();
            if now.is_empty() {
                return;
            }
        }
        for at in now {
            out.extend(self.nodes[at].dests.iter().cloned());
        }
    }

    /// A node, and its `#` child, which needs no word.
    fn reach(&self, at: usize, out: &mut Vec<usize>) {
        out.push(at);
        if let Some(hash) = self.nodes[at].hash {
            out.push(hash);
        }
    }

    /// Nodes in use, the root included.
    #[cfg(test)]
    pub fn node_count(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}
