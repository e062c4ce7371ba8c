//! The picture: panels under one another, as wide as the screen.

mod cell;
mod facts;
mod header;
mod help;
mod palette;
mod pool;
mod shards;
mod stages;
mod subchannels;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Paragraph, Wrap};

use super::figures::{Choice, Figures, Sort};
use super::picture::Notice;
pub(super) use palette::Palette;

/// Smallest screen on which there is something to see.
const LEAST_WIDTH: u16 = 60;
const LEAST_HEIGHT: u16 = 16;

/// Lines from which on panels stand apart.
const AIRY_HEIGHT: usize = 27;

/// What is on the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen<'a> {
    pub(super) address: &'a str,
    /// Missing before there were two scrapes.
    pub(super) figures: Option<&'a Figures>,
    pub(super) choice: &'a Choice,
    pub(super) sort: Sort,
    /// First subchannel that is shown.
    pub(super) scroll: usize,
    pub(super) help: bool,
    /// What is to be said, over the figures.
    pub(super) notice: Option<&'a Notice>,
    /// The last line: the keys, or a question.
    pub(super) foot: &'a str,
    pub(super) palette: Palette,
}

impl Screen<'_> {
    /// Draws it.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < LEAST_WIDTH || area.height < LEAST_HEIGHT {
            let words = format!(
                "This terminal has {} columns and {} lines: {LEAST_WIDTH} and {LEAST_HEIGHT} are needed. q ends.",
                area.width, area.height
            );
            frame.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), area);
            return;
        }
        let rows = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]);
        let [body, foot] = rows.areas(area);
        let lines = self.lines(usize::from(area.width), usize::from(body.height));
        frame.render_widget(Paragraph::new(Text::from(lines)), body);
        frame.render_widget(Paragraph::new(self.foot).style(self.palette.edge()), foot);
    }

    /// All lines but the last; the table of subchannels takes what `height` leaves.
    pub(super) fn lines(&self, width: usize, height: usize) -> Vec<Line<'static>> {
        let palette = self.palette;
        let mut lines = header::title(self.address, self.figures, self.choice, palette, width);
        if self.help {
            lines.push(Line::default());
            lines.extend(help::lines(palette));
            return lines;
        }
        if let Some(figures) = self.figures {
            lines.extend(header::lines(figures, palette, width));
        }
        lines.push(match self.notice {
            Some(Notice { words, is_trouble: true }) => {
                Line::styled(words.clone(), palette.trouble())
            }
            Some(Notice { words, is_trouble: false }) => Line::raw(words.clone()),
            None => Line::default(),
        });
        let Some(figures) = self.figures else {
            return lines;
        };
        lines.extend(stages::lines(&figures.stages, palette, width));
        let airy = height >= AIRY_HEIGHT;
        lines.extend(airy.then(Line::default));
        if let Some(pool) = &figures.pool {
            lines.extend(pool::lines(pool, palette, width));
        }
        if let Some(server) = &figures.server {
            lines.extend(shards::server(server, palette, width));
        }
        lines.extend(shards::lines(&figures.shards, palette, width));
        lines.extend(airy.then(Line::default));
        let rows = height.saturating_sub(lines.len() + 1);
        if rows > 0 && (figures.server.is_none() || !figures.subchannels.is_empty()) {
            lines.push(subchannels::names(self.sort, figures.shards.subchannels, palette));
            let from = self.scroll.min(figures.subchannels.len().saturating_sub(rows));
            let shown =
                figures.subchannels.iter().skip(from).take(rows).cloned().collect::<Vec<_>>();
            lines.extend(subchannels::rows(&shown, palette));
            if shown.is_empty() {
                lines.push(Line::from("-"));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests;
