//! Threads for blocking work: reads that somebody waits for on one, jobs on the other, so that a rewrite never
//! stands before a delivery.

use crate::ends::Ends;
use crate::mailbox::Mailbox;
use longshore_node::{Input, Task};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Two threads; they end when this is dropped.
pub(crate) struct Workers {
    urgent: Sender<Task>,
    other: Sender<Task>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads. What is handed to them is bounded by the node, which asks for so much at once.
    pub fn start(name: &str, mailbox: &Mailbox, ends: &Ends) -> io::Result<Workers> {
        let (urgent, urgent_tasks) = channel();
        let (other, other_tasks) = channel();
        let mut threads = Vec::new();
        for (role, tasks) in [("read", urgent_tasks), ("job", other_tasks)] {
            let (mailbox, watched) = (mailbox.clone(), ends.watch(role));
            let builder = std::thread::Builder::new().name(format!("{role}-{name}"));
            threads.push(builder.spawn(move || {
                let _watched = watched;
                run(&tasks, &mailbox);
            })?);
        }
        Ok(Workers { urgent, other, threads })
    }

    /// Hands a task over.
    pub fn run(&self, task: Task) {
        let lane = if task.is_urgent() { &self.urgent } else { &self.other };
        // The thread only ends when this is dropped.
        let _ = lane.send(task);
    }

    /// Ends the threads after what they have.
    pub fn stop(self) {
        drop((self.urgent, self.other));
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn run(tasks: &Receiver<Task>, mailbox: &Mailbox) {
    while let Ok(task) = tasks.recv() {
        if !mailbox.report(Input::Done(task.run())) {
            return;
        }
    }
}
