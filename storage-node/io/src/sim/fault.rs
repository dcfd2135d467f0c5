//! What can be injected, and seeded choices.

use std::io;

/// Kinds of operations that a fault can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `read_at`.
    Read,
    /// `write_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// `open` with `Create`, and `create_dir`.
    Create,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`.
    SyncDir,
    /// `set_len`.
    SetLen,
    /// `allocate`.
    Allocate,
}

/// What a fault does to the operation that it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An I/O error, nothing done.
    Eio,
    /// No space, nothing done.
    NoSpace,
    /// A write that did this many bytes, then an I/O error.
    Short(usize),
    /// A read whose result has one bit flipped; what lies on the disk is right.
    FlipRead,
    /// A sync that reports an error and forgets which writes it had to do: they are as good as lost at the next crash,
    /// although reads still show them (what Linux does).
    LostSync,
}

impl Effect {
    pub(super) fn error(self) -> io::Error {
        match self {
            Effect::NoSpace => io::Error::from(io::ErrorKind::StorageFull),
            _ => io::Error::other("injected I/O error"),
        }
    }
}

/// One injected fault: strikes once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of operation.
    pub operation: Operation,
    /// Only paths that begin with this; empty for all.
    pub path_prefix: String,
    /// So many matching operations pass first.
    pub after: u64,
    /// What happens.
    pub effect: Effect,
}

/// A small seeded generator (splitmix64): the same seed gives the same choices on every machine.
#[derive(Clone, Debug, Default)]
pub struct Rng(u64);

impl Rng {
    /// A generator.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
