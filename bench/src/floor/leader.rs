//! The floor's leader: one thread that takes everything that waits, encodes it once, sends it to both followers while
//! the log thread writes it, and acknowledges what two of the three have synced.

use super::follower::FRAME_HEADER_BYTES;
use super::log::{Append, Log, encode};
use super::{REPLICAS, log};
use anyhow::{Result, anyhow};
use bytes::{BufMut, Bytes, BytesMut};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

const TERM: u64 = 1;
/// Events that one turn takes at most.
const TURN_EVENTS_MAX: usize = 512;
const QUEUE_MAX: usize = 8_192;

/// An entry that the generator wants replicated.
#[derive(Clone)]
pub struct Proposal {
    /// Its group.
    pub group: u32,
    /// What it carries.
    pub body: Bytes,
}

enum Event {
    Proposals(Vec<Proposal>),
    /// Replica `.0` has synced every record up to number `.1`.
    Synced(usize, u64),
}

/// The running leader.
pub struct Store {
    events: SyncSender<Event>,
    commits: Receiver<u64>,
    syncs: Arc<AtomicU64>,
}

impl Store {
    /// Hands over entries; their numbers follow those before. Errors: the leader has ended.
    pub fn propose(&self, proposals: Vec<Proposal>) -> Result<()> {
        if proposals.is_empty() {
            return Ok(());
        }
        self.events.send(Event::Proposals(proposals)).map_err(|_| ended())
    }

    /// Waits until more is acknowledged; the number of the last acknowledged entry. Errors: the leader has ended.
    pub fn committed(&self) -> Result<u64> {
        let mut newest = self.commits.recv().map_err(|_| ended())?;
        while let Ok(next) = self.commits.try_recv() {
            newest = next;
        }
        Ok(newest)
    }

    /// fdatasync calls of the leader so far.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the floor's leader has ended; its message is above")
}

/// Connects to the followers and starts the leader's threads.
pub fn start(dir: &Path, followers: &[SocketAddr], window: u32) -> Result<Store> {
    let (events, inbox) = sync_channel(QUEUE_MAX.max(window as usize));
    let (report, commits) = sync_channel(QUEUE_MAX.max(window as usize));
    let synced = events.clone();
    let log = Log::start(dir, move |last| {
        // The store thread has ended only when the process ends.
        let _ = synced.send(Event::Synced(0, last));
    })?;
    let mut streams = Vec::new();
    for (n, address) in followers.iter().enumerate() {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let (acks, events) = (stream.try_clone()?, events.clone());
        std::thread::Builder::new().name("acks".into()).spawn(move || read_acks(acks, n + 1, &events))?;
        streams.push(stream);
    }
    let syncs = log.syncs();
    std::thread::Builder::new().name("store".into()).spawn(move || {
        if let Err(error) = turns(&inbox, &log, &mut streams, &report) {
            eprintln!("the floor's leader failed: {error:#}");
            std::process::exit(1);
        }
    })?;
    Ok(Store { events, commits, syncs })
}

fn read_acks(mut stream: TcpStream, replica: usize, events: &SyncSender<Event>) {
    let mut number = [0; 8];
    while stream.read_exact(&mut number).is_ok() {
        if events.send(Event::Synced(replica, u64::from_be_bytes(number))).is_err() {
            return;
        }
    }
}

fn turns(
    inbox: &Receiver<Event>,
    log: &Log,
    followers: &mut [TcpStream],
    report: &SyncSender<u64>,
) -> Result<()> {
    let mut synced = [0u64; REPLICAS];
    let (mut last, mut committed) = (0, 0);
    let mut indexes: Vec<u64> = Vec::new();
    while let Ok(first) = inbox.recv() {
        let mut frame = BytesMut::new();
        frame.put_bytes(0, FRAME_HEADER_BYTES);
        let before = last;
        for event in std::iter::once(first).chain(inbox.try_iter().take(TURN_EVENTS_MAX)) {
            match event {
                Event::Synced(replica, number) => {
                    if let Some(known) = synced.get_mut(replica) {
                        *known = number;
                    }
                }
                Event::Proposals(proposals) => {
                    for proposal in proposals {
                        let index = next_index(&mut indexes, proposal.group);
                        encode(&mut frame, proposal.group, TERM, index, &proposal.body);
                        last += 1;
                    }
                }
            }
        }
        if last > before {
            send(frame, last, log, followers)?;
        }
        let mut sorted = synced;
        sorted.sort_unstable();
        let majority = sorted[REPLICAS / 2];
        if majority > committed {
            committed = majority;
            report.send(committed)?;
        }
    }
    Ok(())
}

fn next_index(indexes: &mut Vec<u64>, group: u32) -> u64 {
    let group = group as usize;
    if indexes.len() <= group {
        indexes.resize(group + 1, 0);
    }
    indexes[group] += 1;
    indexes[group]
}

/// Followers first: their disks work while ours does.
fn send(mut frame: BytesMut, last: u64, log: &log::Log, followers: &mut [TcpStream]) -> Result<()> {
    let length = (frame.len() - FRAME_HEADER_BYTES) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame[4..FRAME_HEADER_BYTES].copy_from_slice(&last.to_be_bytes());
    let frame = frame.freeze();
    for follower in followers {
        follower.write_all(&frame)?;
    }
    log.append(Append { bytes: frame.slice(FRAME_HEADER_BYTES..), last })
}
