//! Giving the neighbours on a shard their turn.

use std::future::poll_fn;
use std::task::Poll;

/// Goes to the end of the shard's queue of tasks once.
///
/// tokio's own `yield_now` defers the waker in a list that grows when more tasks than ever before
/// yield at once; this one allocates nothing.
pub(crate) async fn pass() {
    let mut passed = false;
    poll_fn(|cx| {
        if passed {
            return Poll::Ready(());
        }
        passed = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn the_neighbour_runs_in_between() {
        let log = Rc::new(RefCell::new(String::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let local = tokio::task::LocalSet::new();
        for name in ["a", "b"] {
            let log = log.clone();
            local.spawn_local(async move {
                for _ in 0..3 {
                    log.borrow_mut().push_str(name);
                    pass().await;
                }
            });
        }
        runtime.block_on(local);
        assert_eq!(*log.borrow(), "ababab");
    }
}
