//! The first lines: who is asked, how much goes through, and how it ends.

use ratatui::text::{Line, Span};

use super::super::figures::{Choice, Ended, Figures};
use super::cell;
use super::facts::Facts;
use super::palette::Palette;

/// Who is asked, and for what.
pub(super) fn title(
    address: &str,
    figures: Option<&Figures>,
    choice: &Choice,
    palette: Palette,
    width: usize,
) -> Vec<Line<'static>> {
    let all = |choice: &Option<String>| choice.clone().unwrap_or_else(|| "all".to_owned());
    let version = figures.and_then(|figures| figures.version.clone());
    let between = figures.map(|figures| format!("{:.2} s", figures.seconds));
    let dash = || "-".to_owned();
    Facts::new(palette)
        .spans(vec![Span::styled(address.to_owned(), palette.first())])
        .fact("version", version.unwrap_or_else(dash))
        .fact("over", between.unwrap_or_else(dash))
        .fact("class", all(&choice.class))
        .fact("operation", all(&choice.operation))
        .lines("vfio-ccw", width)
}

/// How much goes through, and how it ends.
pub(super) fn lines(figures: &Figures, palette: Palette, width: usize) -> Vec<Line<'static>> {
    let slow = match figures.slow_per_s {
        Some(slow) if slow > 0.0 => palette.trouble(),
        _ => ratatui::style::Style::new(),
    };
    let load = Facts::new(palette)
        .styled("IOPS", cell::count(figures.iops), palette.first())
        .styled("read", cell::bytes_rate(figures.read_bytes_per_s), palette.first())
        .styled("written", cell::bytes_rate(figures.written_bytes_per_s), palette.first())
        .fact("in flight", cell::count(figures.in_flight))
        .fact("queued", cell::count(figures.queued))
        .fact("oldest", cell::seconds(figures.oldest_s))
        .styled("slow", cell::rate(figures.slow_per_s), slow);
    let mut lines = load.lines("load", width);
    lines.extend(outcomes(figures, palette).lines("ended", width));
    let checks: Vec<_> = figures.unit_checks.iter().filter(|check| check.total > 0.0).collect();
    if !checks.is_empty() {
        let checks = checks
            .into_iter()
            .fold(Facts::new(palette), |facts, check| error(facts, check, palette));
        lines.extend(checks.lines("sense", width));
    }
    lines
}

/// Outcomes that there were. Those that are errors stand out while there are more of them.
fn outcomes(figures: &Figures, palette: Palette) -> Facts {
    let facts = Facts::new(palette);
    if figures.completions.is_empty() {
        return facts.fact("ok", "-".to_owned());
    }
    let seen = figures.completions.iter().filter(|it| it.name == "ok" || it.total > 0.0);
    let facts = seen.fold(facts, |facts, outcome| match outcome.name.as_str() {
        "ok" => facts.fact("ok", cell::rate(Some(outcome.per_s))),
        _ => error(facts, outcome, palette),
    });
    let none = figures.completions.iter().all(|it| it.name == "ok" || it.total == 0.0);
    if none { facts.spans(vec![Span::raw("no errors")]) } else { facts }
}

fn error(facts: Facts, ended: &Ended, palette: Palette) -> Facts {
    let style = if ended.per_s > 0.0 { palette.trouble() } else { palette.past_trouble() };
    let value =
        format!("{} ({} in all)", cell::rate(Some(ended.per_s)), cell::count(Some(ended.total)));
    facts.spans(vec![Span::styled(format!("{} {value}", ended.name), style)])
}
