//! How a node's threads end. The first that ends, ends the node: none lives on beside a store or a log that is gone.

use crate::mailbox::Mailbox;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

/// `Err`: why the node failed.
pub(crate) type End = Result<(), String>;

/// Where threads tell of their end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ends {
    first: Arc<Mutex<Option<oneshot::Sender<End>>>>,
    failed: watch::Sender<Option<String>>,
    mailbox: Mailbox,
}

impl Ends {
    /// The receiver hears of the first end; `failed` and the mailbox of each.
    pub fn new(failed: watch::Sender<Option<String>>, mailbox: &Mailbox) -> (Ends, oneshot::Receiver<End>) {
        let (first, end) = oneshot::channel();
        let first = Arc::new(Mutex::new(Some(first)));
        (Ends { first, failed, mailbox: mailbox.clone() }, end)
    }

    /// A thread has ended; after a failure nothing more is taken in.
    pub fn tell(&self, end: End) {
        if end.is_err() {
            self.mailbox.close();
        }
        let why = end.clone().err().unwrap_or_else(|| "stopped".to_owned());
        if let Some(first) = self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = first.send(end);
        }
        let _ = self.failed.send(Some(why));
    }

    /// To be held by a thread while it runs: a panic is an end too.
    pub fn watch(&self, thread: &'static str) -> Watched {
        Watched { ends: self.clone(), thread }
    }
}

/// See [`Ends::watch`].
pub(crate) struct Watched {
    ends: Ends,
    thread: &'static str,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ends.tell(Err(format!("its {} thread panicked", self.thread)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_node::Input;

    #[test]
    fn a_thread_that_panics_ends_the_node() {
        let mailbox = Mailbox::new();
        let (failed, failure) = watch::channel(None);
        let (ends, end) = Ends::new(failed, &mailbox);
        let watched = ends.watch("log");
        let thread = std::thread::spawn(move || {
            let _watched = watched;
            panic!("of a test");
        });
        assert!(thread.join().is_err());
        assert_eq!(end.blocking_recv(), Ok(Err("its log thread panicked".to_owned())));
        assert_eq!(failure.borrow().as_deref(), Some("its log thread panicked"));
        assert!(!mailbox.report(Input::Stopping), "nothing is taken in any more");
    }

    #[test]
    fn a_thread_that_ends_in_order_says_nothing_by_itself_and_a_stop_is_no_failure() {
        let mailbox = Mailbox::new();
        let (failed, failure) = watch::channel(None);
        let (ends, end) = Ends::new(failed, &mailbox);
        drop(ends.watch("read"));
        assert!(failure.borrow().is_none());
        ends.tell(Ok(()));
        assert_eq!(end.blocking_recv(), Ok(Ok(())));
        assert!(mailbox.report(Input::Stopping));
    }
}
