//! What the keys do.

use ratatui::text::{Line, Span};

use super::palette::Palette;

const KEYS: [(&str, &str); 10] = [
    ("q", "end"),
    ("space, p", "hold the picture, and go on"),
    ("s", "change the time between two scrapes"),
    ("c", "requests of the next class of device, then of all"),
    ("o", "the next operation, then all"),
    ("B", "sort subchannels by busy time"),
    ("R", "sort subchannels by requests"),
    ("E", "sort subchannels by errors"),
    ("arrows, PgUp, PgDn", "move in the table of subchannels"),
    ("h, ?", "this, and back"),
];

const WORDS: [&str; 6] = [
    "Rates are of the time between the last two scrapes. '-': the service does not say.",
    "Quantiles lie somewhere in a bucket of the histogram: p99 may be off by as much as one is wide.",
    "share: of the time of all requests. busy: share of the time in which there was a program.",
    "at budget: hit rates that a pin budget so many times as large would have (an estimate).",
    "shards: 100 % is the time of one shard. looking: until there was work; in vain: until it slept.",
    "slow: requests that took longer than the flight recorder's limit.",
];

pub(super) fn lines(palette: Palette) -> Vec<Line<'static>> {
    let key = |(key, what): (&str, &str)| {
        Line::from(vec![
            Span::styled(format!("{key:>20}  "), palette.first()),
            Span::raw(what.to_owned()),
        ])
    };
    let keys = KEYS.into_iter().map(key);
    keys.chain([Line::default()]).chain(WORDS.map(Line::from)).collect()
}
