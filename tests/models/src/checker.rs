//! Whether a history is linearisable: whether its operations, each taking effect at one moment while it
//! was under way, can have gone as they did (Herlihy and Wing).
//!
//! The search is that of Wing and Gong: an operation may be the next one if no other that is left was
//! over before it began. What was tried is remembered, as Lowe does: by how far each thread has come,
//! and the state that was reached.

use std::collections::HashSet;
use std::fmt;

use crate::history::{Event, History};
use crate::model::Model;

/// How far each thread has come.
type Progress = Vec<usize>;

/// A history that is not linearisable.
#[derive(Debug)]
pub struct Refutation {
    history: History,
    /// The longest start of an order that could be found: a thread for each operation.
    longest: Vec<usize>,
    /// What the subchannel is like behind it.
    reached: Model,
}

/// An order in which the operations of `history` can have taken effect on a subchannel that was
/// `initial`: a thread for each operation.
///
/// # Errors
///
/// There is none.
pub fn linearise(history: &History, initial: &Model) -> Result<Vec<usize>, Box<Refutation>> {
    let mut search = Search {
        history,
        tried: HashSet::new(),
        order: Vec::new(),
        longest: (Vec::new(), initial.clone()),
    };
    let mut progress = vec![0; history.threads.len()];
    if search.goes_on(&mut progress, initial) {
        return Ok(search.order);
    }
    let (longest, reached) = search.longest;
    Err(Box::new(Refutation { history: history.clone(), longest, reached }))
}

struct Search<'a> {
    history: &'a History,
    /// Where the search has been in vain, or is.
    tried: HashSet<(Progress, Model)>,
    order: Vec<usize>,
    longest: (Vec<usize>, Model),
}

impl Search<'_> {
    /// Whether all that is left can follow.
    fn goes_on(&mut self, progress: &mut Progress, state: &Model) -> bool {
        let history = self.history;
        let next = |progress: &Progress, thread: usize| -> Option<&Event> {
            history.threads[thread].get(progress[thread])
        };
        let threads = 0..history.threads.len();
        let left = threads.clone().filter_map(|thread| next(progress, thread));
        let Some(first_over) = left.map(|event| event.responded).min() else { return true };
        if !self.tried.insert((progress.clone(), state.clone())) {
            return false;
        }
        if self.order.len() > self.longest.0.len() {
            self.longest = (self.order.clone(), state.clone());
        }
        for thread in threads {
            let Some(event) = next(progress, thread) else { continue };
            if event.invoked > first_over {
                continue;
            }
            let Some(after) = state.after(&event.operation) else { continue };
            progress[thread] += 1;
            self.order.push(thread);
            if self.goes_on(progress, &after) {
                return true;
            }
            self.order.pop();
            progress[thread] -= 1;
        }
        false
    }
}

impl fmt::Display for Refutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no order of these operations follows the rules:")?;
        writeln!(f, "{}", self.history)?;
        writeln!(f, "the longest start of one that does:")?;
        let mut progress = vec![0; self.history.threads.len()];
        for thread in &self.longest {
            let event = &self.history.threads[*thread][progress[*thread]];
            progress[*thread] += 1;
            writeln!(f, "  thread {thread}: {}", event.operation)?;
        }
        writeln!(f, "behind it the subchannel is {:?},", self.reached)?;
        writeln!(f, "and each thread goes on with one of")?;
        for (thread, events) in self.history.threads.iter().enumerate() {
            if let Some(event) = events.get(progress[thread]) {
                writeln!(f, "  thread {thread}: {}", event.operation)?;
            }
        }
        Ok(())
    }
}
