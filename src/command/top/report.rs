//! One report for people or scripts, of two scrapes.

use std::thread;
use std::time::Duration;

use ratatui::text::Line;
use thiserror::Error;

use super::figures::{Choice, Figures, Sort};
use super::reading::{Change, Reading};
use super::scrape::{ScrapeError, Scraper};
use super::view::{Palette, Screen};

/// Columns of a report.
const WIDTH: usize = 100;

/// Two scrapes of one life of the service.
#[derive(Debug)]
pub(super) struct Report {
    address: String,
    earlier: Reading,
    later: Reading,
}

impl Report {
    /// Scrapes twice, `interval` apart.
    pub(super) fn take(
        scraper: &Scraper,
        address: String,
        interval: Duration,
    ) -> Result<Self, NoReport> {
        let earlier = scraper.reading()?;
        thread::sleep(interval);
        let later = scraper.reading()?;
        match (Change { earlier: &earlier, later: &later }).is_restart() {
            true => Err(NoReport::Restarted),
            false => Ok(Report { address, earlier, later }),
        }
    }

    fn figures(&self) -> Figures {
        let change = Change { earlier: &self.earlier, later: &self.later };
        Figures::of(change, &Choice::default(), Sort::default())
    }

    /// One JSON object.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.figures().json(&self.address, &Choice::default()))
    }

    /// What the screen shows, with all subchannels.
    pub(super) fn text(&self) -> String {
        let figures = self.figures();
        let screen = Screen {
            address: &self.address,
            figures: Some(&figures),
            choice: &Choice::default(),
            sort: Sort::default(),
            scroll: 0,
            help: false,
            notice: None,
            foot: "",
            palette: Palette::PLAIN,
        };
        let lines = screen.lines(WIDTH, usize::MAX);
        let lines: Vec<_> = lines.iter().map(Line::to_string).collect();
        lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
    }
}

/// Why there is no report.
#[derive(Debug, Error)]
pub(super) enum NoReport {
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    #[error("the service was started again between the two scrapes: try once more")]
    Restarted,
}
