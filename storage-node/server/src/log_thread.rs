//! The log thread: writes and syncs whatever waits, then lets go what waited for it.
//!
//! Danger: a follower's acknowledgements are in the held frames; they leave here and nowhere else, after the sync
//! and after the completion is in the store thread's mailbox.

use crate::mailbox::Mailbox;
use crate::peers::Peers;
use longshore_consensus::{Event, Held};
use longshore_log::{LogError, LogWriter, WriteRequest};
use longshore_node::Input;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// After a write that found no room, this long until the next try.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(200);

/// A write and the frames that wait for it.
pub(crate) type Write = (WriteRequest, Option<Held>);

/// Runs until the store thread is gone. Errors: the process must end.
pub(crate) fn run(
    mut writer: LogWriter,
    writes: &Receiver<Write>,
    mailbox: &Mailbox,
    peers: &Peers,
) -> Result<(), LogError> {
    let mut held: VecDeque<Held> = VecDeque::new();
    loop {
        let mut requests = Vec::new();
        let first = if writer.is_waiting() {
            writes.recv_timeout(NO_SPACE_PAUSE)
        } else {
            writes.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match first {
            Ok(write) => take(write, &mut requests, &mut held),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        while let Ok(write) = writes.try_recv() {
            take(write, &mut requests, &mut held);
        }
        metrics::histogram!("longshore_log_batch_requests").record(requests.len() as f64);
        metrics::histogram!("longshore_log_batch_bytes")
            .record(requests.iter().map(WriteRequest::bytes).sum::<usize>() as f64);
        let started = Instant::now();
        let completion = writer.write(requests)?;
        metrics::histogram!("longshore_log_sync_seconds").record(started.elapsed().as_secs_f64());
        let tickets = completion.tickets.clone();
        if !mailbox.report(Input::Consensus(Event::Written(completion))) {
            return Ok(());
        }
        for ticket in tickets {
            while held.front().is_some_and(|front| front.ticket <= ticket) {
                for frame in held.pop_front().map(|front| front.frames).unwrap_or_default() {
                    peers.send(frame);
                }
            }
        }
    }
}

fn take((request, frames): Write, requests: &mut Vec<WriteRequest>, held: &mut VecDeque<Held>) {
    requests.push(request);
    held.extend(frames);
}
