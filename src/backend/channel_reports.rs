//! The channel reports that wait for the CRW region to be read.

use std::collections::VecDeque;

use crate::architecture::{Crw, CrwFlags, ReportingSource};

/// Reports that wait at most. The one after those that found no room says that some were lost (R), as
/// the architecture has it; the kernel's queue has no end.
const MOST_REPORTS: usize = 256;

/// Error-recovery code: path gone (Linux `CRW_ERC_PERRN`).
const ERC_GONE: u8 = 6;

/// Error-recovery code: path back, initialised (Linux `CRW_ERC_INIT`).
const ERC_BACK: u8 = 2;

/// The queue of one device.
#[derive(Debug, Default)]
pub(super) struct ChannelReports {
    words: VecDeque<Crw>,
    lost: bool,
}

impl ChannelReports {
    /// The report of a path that has gone.
    pub(super) fn path_gone(chpid: u8) -> Crw {
        Crw::new(ReportingSource::ChannelPath, ERC_GONE, chpid.into(), CrwFlags::empty())
    }

    /// The report of a path that has come back.
    pub(super) fn path_back(chpid: u8) -> Crw {
        Crw::new(ReportingSource::ChannelPath, ERC_BACK, chpid.into(), CrwFlags::empty())
    }

    pub(super) fn queue(&mut self, crw: Crw) {
        if self.words.len() >= MOST_REPORTS {
            self.lost = true;
            return;
        }
        let lost =
            if std::mem::take(&mut self.lost) { CrwFlags::OVERFLOW } else { CrwFlags::empty() };
        self.words.push_back(crw.with_flags(lost));
    }

    /// The first report, or zero.
    pub(super) fn take(&mut self) -> Crw {
        self.words.pop_front().unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn reports_come_in_order_and_say_when_some_were_lost() {
        let mut reports = ChannelReports::default();
        assert!(reports.take().is_none());
        for _ in 0..MOST_REPORTS + 2 {
            reports.queue(ChannelReports::path_gone(1));
        }
        assert_eq!(reports.take().as_bytes(), [0x04, 0x06, 0, 1]);
        reports.queue(ChannelReports::path_back(1));
        for _ in 1..MOST_REPORTS {
            assert!(reports.take().flags().is_empty());
        }
        assert_eq!(reports.take().as_bytes(), [0x24, 0x02, 0, 1]);
        assert!(reports.is_empty() && reports.take().is_none());
    }
}
