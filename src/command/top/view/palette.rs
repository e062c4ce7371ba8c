//! What things look like, with colours and without.

use ratatui::style::{Color, Modifier, Style};

/// How things are drawn.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Palette {
    colours: bool,
}

impl Palette {
    pub(in super::super) const PLAIN: Self = Palette { colours: false };

    #[cfg(test)]
    pub(super) const COLOURED: Self = Palette { colours: true };

    /// Without colours where the variable NO_COLOR is set, <https://no-color.org>.
    pub(in super::super) fn of_environment() -> Self {
        Palette { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn colour(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// The name of a panel, and what stands over columns.
    pub(super) fn title(self) -> Style {
        self.colour(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// What a number is of.
    pub(super) fn name(self) -> Style {
        // Not dark grey, which some terminals have as their background.
        if self.colours { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
    }

    /// A number that is looked for first.
    pub(super) fn first(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// A number that means trouble.
    pub(super) fn trouble(self) -> Style {
        let marked =
            if self.colours { Modifier::BOLD } else { Modifier::BOLD | Modifier::REVERSED };
        self.colour(Color::LightRed).add_modifier(marked)
    }

    /// A number that was trouble once.
    pub(super) fn past_trouble(self) -> Style {
        self.colour(Color::Yellow)
    }

    pub(super) fn bar(self) -> Style {
        self.colour(Color::Green)
    }

    /// A line at the edge of the screen.
    pub(super) fn edge(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}
