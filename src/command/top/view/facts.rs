//! Names with their numbers, one after the other, on as many lines as they need.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::palette::Palette;

/// Columns that the name of a panel takes.
pub(super) const NAME_WIDTH: usize = 11;

/// Columns between two facts.
const GAP: usize = 2;

/// A run of facts under one name.
#[derive(Debug)]
pub(super) struct Facts {
    palette: Palette,
    facts: Vec<Vec<Span<'static>>>,
}

impl Facts {
    pub(super) fn new(palette: Palette) -> Self {
        Facts { palette, facts: Vec::new() }
    }

    /// Adds a number with its name before it.
    pub(super) fn fact(self, name: &str, value: String) -> Self {
        self.styled(name, value, Style::new())
    }

    /// Adds a number that looks so.
    pub(super) fn styled(self, name: &str, value: String, style: Style) -> Self {
        let name = Span::styled(format!("{name} "), self.palette.name());
        self.spans(vec![name, Span::styled(value, style)])
    }

    /// Adds what stays on one line.
    pub(super) fn spans(mut self, spans: Vec<Span<'static>>) -> Self {
        self.facts.push(spans);
        self
    }

    /// The lines, none wider than `width` unless a fact is.
    pub(super) fn lines(self, name: &str, width: usize) -> Vec<Line<'static>> {
        let mut line =
            Line::from(Span::styled(format!("{name:<NAME_WIDTH$}"), self.palette.title()));
        let mut lines = Vec::new();
        let mut begun = false;
        for fact in self.facts {
            let columns: usize = fact.iter().map(Span::width).sum();
            let gap = if begun { GAP } else { 0 };
            if begun && line.width() + gap + columns > width {
                lines.push(std::mem::replace(&mut line, Line::from(" ".repeat(NAME_WIDTH))));
            } else if begun {
                line.push_span(" ".repeat(gap));
            }
            fact.into_iter().for_each(|span| line.push_span(span));
            begun = true;
        }
        lines.push(line);
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_go_on_in_the_next_line() {
        let facts = || {
            let facts = Facts::new(Palette::PLAIN).fact("first", "1".into());
            facts.fact("second", "22".into()).fact("third", "333".into())
        };
        let text =
            |width| facts().lines("name", width).iter().map(Line::to_string).collect::<Vec<_>>();
        assert_eq!(text(80), ["name       first 1  second 22  third 333"]);
        assert_eq!(text(33), ["name       first 1  second 22", "           third 333"]);
        assert_eq!(text(5).len(), 3);
    }
}
