//! Shards, and a device server's side of them.

use ratatui::style::Style;
use ratatui::text::Line;

use super::super::figures::{Server, Shards};
use super::cell;
use super::facts::Facts;
use super::palette::Palette;

/// What shards do without work, and who wakes them. 100 % is the time of one.
pub(super) fn lines(shards: &Shards, palette: Palette, width: usize) -> Vec<Line<'static>> {
    let facts = Facts::new(palette)
        .fact("looking", cell::percent(shards.looking))
        .fact("in vain", cell::percent(shards.in_vain))
        .fact("asleep", cell::percent(shards.asleep))
        .fact("doorbells sent", cell::rate(shards.doorbells_sent_per_s))
        .fact("suppressed", cell::rate(shards.doorbells_suppressed_per_s));
    let facts = match shards.reconnects {
        Some(reconnects) if reconnects > 0.0 => {
            facts.styled("reconnects", cell::count(Some(reconnects)), palette.past_trouble())
        }
        _ => facts,
    };
    facts.lines("shards", width)
}

/// A device server's clients, and what they have it do.
pub(super) fn server(server: &Server, palette: Palette, width: usize) -> Vec<Line<'static>> {
    let refusals = match server.refusals_per_s {
        Some(refusals) if refusals > 0.0 => palette.trouble(),
        _ => Style::new(),
    };
    let windows = format!("{} ({})", cell::count(server.windows), cell::bytes(server.window_bytes));
    Facts::new(palette)
        .styled("clients", cell::count(server.clients), palette.first())
        .fact("connections", cell::rate(server.connections_per_s))
        .fact("messages", cell::rate(server.messages_per_s))
        .styled("refusals", cell::rate(server.refusals_per_s), refusals)
        .fact("lanes", cell::count(server.lanes))
        .fact("windows", windows)
        .lines("server", width)
}
