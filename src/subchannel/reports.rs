//! Channel reports: what the guest is told of subchannels that come and go.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

use crate::architecture::{Crw, CrwFlags, ReportingSource, SubchannelId};
use crate::service::delivery::Trigger;

use super::Cc;

/// Reports that wait for the guest at most. Those that find no room are lost, and the next one says so
/// (R in the channel-report word), as the architecture has it.
const MOST_REPORTS: usize = 1024;

/// Error-recovery code: installed parameters initialised (Linux `CRW_ERC_IPARM`). What was known of the
/// source is void.
const ERC_INITIALISED: u8 = 4;

/// The channel-report words that wait for STORE CHANNEL REPORT WORD.
pub(crate) struct Reports {
    words: ArrayQueue<Crw>,
    /// A word whose storing failed: it comes first. Zero: none.
    returned: AtomicU32,
    /// The guest was told that there are words, and has not yet found none.
    told: AtomicBool,
    lost: AtomicBool,
    trigger: Option<Arc<dyn Trigger<Crw>>>,
    /// Words that belong together stay together.
    writer: Mutex<()>,
}

impl Reports {
    pub(crate) fn new(trigger: Option<Arc<dyn Trigger<Crw>>>) -> Self {
        Reports {
            words: ArrayQueue::new(MOST_REPORTS),
            returned: AtomicU32::new(0),
            told: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            trigger,
            writer: Mutex::new(()),
        }
    }

    /// A subchannel has come or gone (QEMU `css_generate_sch_crws`): the guest has to look at it.
    pub(crate) fn report_subchannel(&self, id: SubchannelId) {
        let subchannel =
            |id, flags| Crw::new(ReportingSource::Subchannel, ERC_INITIALISED, id, flags);
        // The set stands in a second word. A guest that has not enabled other sets has subchannels in
        // set 0 only.
        if id.set() == 0 {
            return self.queue(&[subchannel(id.number(), CrwFlags::empty())]);
        }
        self.queue(&[
            subchannel(id.number(), CrwFlags::CHAINED),
            subchannel(u16::from(id.set()) << 4, CrwFlags::empty()),
        ]);
    }

    /// A report that the host had about one of its channel paths.
    pub(crate) fn report(&self, word: Crw) {
        self.queue(&[word]);
    }

    fn queue(&self, words: &[Crw]) {
        let writer = self.writer.lock();
        if self.words.len() + words.len() > self.words.capacity() {
            // Relaxed: only writers use it, one at a time.
            self.lost.store(true, Ordering::Relaxed);
            return;
        }
        // Relaxed: as above.
        let lost = self.lost.swap(false, Ordering::Relaxed);
        for (index, word) in words.iter().enumerate() {
            let overflow = if lost && index == 0 { CrwFlags::OVERFLOW } else { CrwFlags::empty() };
            let queued = self.words.push(word.with_flags(overflow));
            debug_assert!(queued.is_ok(), "there was room, and only one writes at a time");
        }
        drop(writer);
        // AcqRel: whoever found none and said so, in `store`, sees the word, or we see that he said so.
        if !self.told.swap(true, Ordering::AcqRel)
            && let Some(trigger) = &self.trigger
            && let Err(error) = trigger.trigger(&words[0])
        {
            tracing::error!(%error, "the guest could not be told of a channel report");
        }
    }

    /// STORE CHANNEL REPORT WORD: cc 0 and a word, or cc 1 and zero.
    pub(crate) fn store(&self) -> (Cc, Crw) {
        loop {
            // Acquire: pairs with the release in `put_back`.
            match Crw::from_word(self.returned.swap(0, Ordering::Acquire)) {
                returned if !returned.is_none() => return (Cc::Cc0, returned),
                _ => {}
            }
            if let Some(word) = self.words.pop() {
                return (Cc::Cc0, word);
            }
            // AcqRel: pairs with the swap in `queue`.
            if !self.told.swap(false, Ordering::AcqRel) || self.words.is_empty() {
                return (Cc::Cc1, Crw::default());
            }
            // A word has come meanwhile, of which nobody is told any more.
            self.told.store(true, Ordering::Release);
        }
    }

    /// A word that could not be stored comes again, first.
    pub(crate) fn put_back(&self, word: Crw) {
        // Release: pairs with the acquire in `store`.
        let other = self.returned.swap(word.word(), Ordering::AcqRel);
        if other != 0 {
            // Two vCPUs failed at the same time; the reports say that there is more to look at.
            self.queue(&[Crw::from_word(other)]);
        }
    }

    /// Words that wait. They stay; nobody may take any meanwhile.
    pub(crate) fn waiting(&self) -> Vec<Crw> {
        let _writer = self.writer.lock();
        let queued: Vec<Crw> = std::iter::from_fn(|| self.words.pop()).collect();
        for word in &queued {
            let kept = self.words.push(*word);
            debug_assert!(kept.is_ok(), "it comes from there");
        }
        // Relaxed: nobody takes or returns any.
        let returned = Crw::from_word(self.returned.load(Ordering::Relaxed));
        (!returned.is_none()).then_some(returned).into_iter().chain(queued).collect()
    }

    /// Queues words that waited elsewhere.
    pub(crate) fn restore(&self, words: &[Crw]) {
        words.iter().for_each(|word| self.queue(&[*word]));
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").field("waiting", &self.words.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn counting() -> (Arc<AtomicUsize>, Reports) {
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let trigger = move |_: &Crw| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        (told, Reports::new(Some(Arc::new(trigger))))
    }

    #[test]
    fn the_guest_is_told_once_until_it_has_found_none() {
        let (told, reports) = counting();
        for number in [7, 8] {
            reports.report_subchannel(SubchannelId::new(0, number));
        }
        assert_eq!(told.load(Ordering::Relaxed), 1);
        let (cc, word) = reports.store();
        assert_eq!((cc, word.source(), word.erc(), word.id()), (Cc::Cc0, 3, 4, 7));
        assert!(word.flags().is_empty());
        assert_eq!(reports.store().1.id(), 8);
        reports.report_subchannel(SubchannelId::new(0, 9));
        assert_eq!(told.load(Ordering::Relaxed), 1, "it is still looking");
        assert_eq!(reports.store().1.id(), 9);
        assert_eq!(reports.store(), (Cc::Cc1, Crw::default()));
        reports.report_subchannel(SubchannelId::new(0, 9));
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn other_sets_take_two_words() {
        let (_, reports) = counting();
        reports.report_subchannel(SubchannelId::new(2, 0x1234));
        let first = reports.store().1;
        assert_eq!((first.id(), first.flags()), (0x1234, CrwFlags::CHAINED));
        let second = reports.store().1;
        assert_eq!((second.id(), second.flags()), (0x20, CrwFlags::empty()));
    }

    #[test]
    fn what_is_lost_is_said_with_the_next() {
        let (_, reports) = counting();
        for number in 0..MOST_REPORTS as u16 + 5 {
            reports.report_subchannel(SubchannelId::new(0, number));
        }
        for number in 0..MOST_REPORTS as u16 {
            assert_eq!(reports.store().1.id(), number);
        }
        assert_eq!(reports.store().0, Cc::Cc1);
        reports.report_subchannel(SubchannelId::new(0, 1));
        assert_eq!(reports.store().1.flags(), CrwFlags::OVERFLOW);
        reports.report_subchannel(SubchannelId::new(0, 2));
        assert!(reports.store().1.flags().is_empty());
    }

    #[test]
    fn words_that_wait_can_be_taken_elsewhere() {
        let (_, here) = counting();
        for number in [1, 2, 3] {
            here.report_subchannel(SubchannelId::new(0, number));
        }
        here.put_back(here.store().1);
        let (told, there) = counting();
        there.restore(&here.waiting());
        assert_eq!(told.load(Ordering::Relaxed), 1);
        for reports in [&here, &there] {
            let ids = std::iter::from_fn(|| Some(reports.store().1).filter(|word| !word.is_none()));
            assert_eq!(ids.map(|word| word.id()).collect::<Vec<_>>(), [1, 2, 3]);
        }
    }

    #[test]
    fn a_word_that_was_not_stored_comes_again_first() {
        let (_, reports) = counting();
        reports.report_subchannel(SubchannelId::new(0, 1));
        reports.report_subchannel(SubchannelId::new(0, 2));
        let first = reports.store().1;
        reports.put_back(first);
        assert_eq!(reports.store().1, first);
        assert_eq!(reports.store().1.id(), 2);
        assert_eq!(reports.store().0, Cc::Cc1);
    }
}
