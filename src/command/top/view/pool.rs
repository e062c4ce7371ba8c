//! The pool of pinned pages.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::figures::Pool;
use super::cell;
use super::facts::Facts;
use super::palette::Palette;

const GAUGE_WIDTH: usize = 20;

/// What is pinned of the budget, what that costs, and what other budgets would cost.
pub(super) fn lines(pool: &Pool, palette: Palette, width: usize) -> Vec<Line<'static>> {
    let budget = pool.budget_bytes.filter(|budget| *budget > 0.0);
    let share = pool.pinned_bytes.zip(budget).map(|(pinned, budget)| pinned / budget);
    let gauge = vec![
        Span::raw("["),
        Span::styled(cell::bar(share, GAUGE_WIDTH), palette.bar()),
        Span::raw(format!("] {}", cell::percent(share))),
    ];
    let trouble = |value: Option<f64>| match value {
        Some(value) if value > 0.0 => palette.trouble(),
        _ => Style::new(),
    };
    let pinned =
        format!("{} of {}", cell::bytes(pool.pinned_bytes), cell::bytes(pool.budget_bytes));
    let facts = Facts::new(palette)
        .spans(gauge)
        .fact("pinned", pinned)
        .fact("peak", cell::bytes(pool.peak_bytes))
        .fact("windows", cell::count(pool.windows))
        .styled("hit rate", cell::percent(pool.hit_rate), palette.first())
        .fact("misses", cell::rate(pool.misses_per_s))
        .fact("evictions", cell::rate(pool.evictions_per_s))
        .fact("invalidations", cell::rate(pool.invalidations_per_s))
        .styled("waits", cell::rate(pool.waits_per_s), trouble(pool.waits_per_s))
        .styled("waiting", cell::count(pool.waiting), trouble(pool.waiting));
    let mut lines = facts.lines("pin pool", width);
    if !pool.estimates.is_empty() {
        let facts = pool.estimates.iter().fold(Facts::new(palette), |facts, (times, rate)| {
            facts.fact(&format!("×{times}"), cell::percent(*rate))
        });
        lines.extend(facts.lines("at budget", width));
    }
    lines
}
