//! What is known of the service: the last two scrapes, and whether it still answers.

use std::time::Instant;

use super::figures::{Choice, Figures, Sort};
use super::reading::{Change, Reading};
use super::scrape::ScrapeError;

/// The last scrapes, and how the service has answered since.
#[derive(Debug, Default)]
pub(super) struct Picture {
    shown: Option<(Reading, Reading)>,
    /// The newest, where the picture is held or there is no older one.
    newest: Option<Reading>,
    outage: Option<Outage>,
    restarted: bool,
}

/// Something to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) words: String,
    pub(super) is_trouble: bool,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    why: ScrapeError,
}

impl Picture {
    /// Takes what a scrape brought; shows it, unless the picture is held.
    pub(super) fn take(&mut self, scraped: Result<Reading, ScrapeError>, held: bool) {
        let reading = match scraped {
            Ok(reading) => reading,
            Err(why) => {
                let since = self.outage.take().map_or_else(Instant::now, |outage| outage.since);
                self.outage = Some(Outage { since, why });
                return;
            }
        };
        self.outage = None;
        let Some(before) = self.newest.replace(reading.clone()) else {
            return;
        };
        if (Change { earlier: &before, later: &reading }).is_restart() {
            self.restarted = true;
            self.shown = None;
        } else if !held {
            self.restarted = false;
            self.shown = Some((before, reading));
        }
    }

    /// The newest reading.
    pub(super) fn newest(&self) -> Option<&Reading> {
        self.newest.as_ref()
    }

    /// The numbers that are shown. `None` before there were two scrapes.
    pub(super) fn figures(&self, choice: &Choice, sort: Sort) -> Option<Figures> {
        let (earlier, later) = self.shown.as_ref()?;
        Some(Figures::of(Change { earlier, later }, choice, sort))
    }

    /// What is to be said about them.
    pub(super) fn notice(&self) -> Option<Notice> {
        let notice = |words: &str, is_trouble| Some(Notice { words: words.to_owned(), is_trouble });
        if let Some(Outage { since, why }) = &self.outage {
            let seconds = since.elapsed().as_secs();
            let rest = if self.shown.is_some() { "; what is shown is from before" } else { "" };
            return notice(&format!("no metrics for {seconds} s: {why}{rest}"), true);
        }
        match (self.restarted, &self.shown) {
            (true, _) => notice("the service was started again: numbers begin anew", true),
            (false, None) => notice("waiting for two scrapes", false),
            (false, Some(_)) => None,
        }
    }

    /// Whether what is said changes by itself.
    pub(super) fn is_out(&self) -> bool {
        self.outage.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::{pages, readings};
    use super::*;

    fn figures(picture: &Picture) -> Option<Figures> {
        picture.figures(&Choice::default(), Sort::Busy)
    }

    #[test]
    fn two_scrapes_make_a_picture_that_outlasts_the_service() {
        let [first, second] = readings(pages());
        let mut picture = Picture::default();
        assert!(picture.notice().unwrap().words.contains("waiting"));
        picture.take(Ok(first), false);
        assert!(figures(&picture).is_none());
        picture.take(Ok(second), false);
        assert!(figures(&picture).is_some() && picture.notice().is_none());
        picture.take(Err(ScrapeError::Status(500)), false);
        let notice = picture.notice().unwrap().words;
        assert!(notice.contains("500") && notice.contains("before"), "{notice}");
        assert!(figures(&picture).is_some() && picture.is_out());
    }

    #[test]
    fn a_service_that_was_started_again_begins_anew() {
        let [first, second] = readings(pages());
        let mut picture = Picture::default();
        picture.take(Ok(first.clone()), false);
        picture.take(Ok(second.clone()), false);
        picture.take(Ok(first), false);
        assert!(picture.notice().unwrap().words.contains("started again"));
        assert!(figures(&picture).is_none());
        picture.take(Ok(second), false);
        assert!(picture.notice().is_none() && figures(&picture).is_some());
    }

    #[test]
    fn a_picture_that_is_held_stays() {
        let [first, second] = readings(pages());
        let mut picture = Picture::default();
        picture.take(Ok(first), false);
        picture.take(Ok(second.clone()), false);
        picture.take(Ok(second.clone()), true);
        assert_eq!(figures(&picture).unwrap().iops, Some(1010.0));
        picture.take(Ok(second), false);
        assert_eq!(figures(&picture).unwrap().iops, Some(0.0));
    }
}
