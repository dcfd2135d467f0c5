//! A panic that one client causes ends that client's connection, and nothing else.
//!
//! Everything that a connection does runs in its task under [`contain`], and what it has computed elsewhere under
//! [`compute`]. A panic in there unwinds: the connection's
//! handles are dropped, which returns what it holds and drops what it owns. Any other panic ends the process at once
//! ([`abort_on_others`]): a storage node, or what all connections share, must not live on half dead.

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::pin::Pin;
use std::task::{Context, Poll};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the thread is at work for one client connection.
pub fn is_contained() -> bool {
    CONTAINED.get()
}

/// Marks the thread until it is dropped, by a panic too.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        CONTAINED.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CONTAINED.set(false);
    }
}

/// A client connection's future.
struct Contained<F>(Option<Pin<Box<F>>>);

impl<F: Future> Future for Contained<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _inside = Inside::enter();
        match &mut self.0 {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Contained<F> {
    fn drop(&mut self) {
        let _inside = Inside::enter();
        self.0 = None;
    }
}

/// Runs what one client connection does. To be spawned as a task of its own, which a panic in `future` ends.
pub fn contain<F: Future>(future: F) -> impl Future<Output = F::Output> {
    Contained(Some(Box::pin(future)))
}

/// Runs `work`, which computes for one client connection on a thread of its own and changes nothing that others share:
/// a panic in it is that connection's.
pub fn compute<T>(work: impl FnOnce() -> T) -> T {
    let _inside = Inside::enter();
    work()
}

/// From now on a panic outside of [`contain`] and [`compute`] ends the process, after it was told. To be called once by a program that
/// unwinds. The hook of before tells of each panic.
pub fn abort_on_others() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        before(info);
        if !is_contained() {
            std::process::abort();
        }
        metrics::counter!("longshore_connection_panics_total").increment(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Notes whether it was dropped while contained.
    struct Handle(Arc<AtomicU32>);

    impl Drop for Handle {
        fn drop(&mut self) {
            self.0.fetch_add(if is_contained() { 1 } else { 100 }, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_connection_alone_and_drops_what_it_had() {
        let dropped = Arc::new(AtomicU32::new(0));
        let handle = Handle(dropped.clone());
        let panics = contain(async move {
            tokio::task::yield_now().await;
            assert!(is_contained());
            let _handle = handle;
            panic!("of a test");
        });
        let held = Handle(dropped.clone());
        let waits = contain(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let (panics, waits) = (tokio::spawn(panics), tokio::spawn(waits));
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        assert!(!is_contained(), "the thread goes on with others");
        waits.abort();
        assert!(waits.await.unwrap_err().is_cancelled());
        assert_eq!(dropped.load(Ordering::Relaxed), 2, "what is dropped late is the connection's too");
    }
}
