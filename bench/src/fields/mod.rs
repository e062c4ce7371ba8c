//! The figures, by topic, in the order in which they are measured.

pub mod pinning;
pub mod rings;
pub mod service;
pub mod translation;

use crate::ratio::{Field, Target};

/// Every figure that can be measured. A figure whose part is not built is not here.
pub const FIELDS: &[Field] = &[
    Field {
        name: "ring_spsc_vs_rtrb",
        measures: "one producer, push+pop of 8 bytes on one thread, ours / rtrb",
        target: Target::Le(1.0),
        rounds: 201,
        round: rings::spsc_vs_rtrb,
    },
    Field {
        name: "ring_mpsc_vs_arrayqueue",
        measures: "two producer threads and a consumer, 40 bytes, ours / crossbeam ArrayQueue",
        target: Target::LeOrEqual { le: 0.8, equal: 1.0 },
        rounds: 151,
        round: rings::mpsc_vs_array_queue,
    },
    Field {
        name: "ring_burst32_vs_rtrb_chunk",
        measures: "one producer, bursts of 32 of 8 bytes on one thread, per item, ours / rtrb chunks",
        target: Target::Le(1.0),
        rounds: 201,
        round: rings::burst32_vs_rtrb_chunk,
    },
    Field {
        name: "pin_hit_vs_mutex_lru",
        measures: "take + release of a cached frame, 16-page programs over 65,536 frames, ours / get on Mutex<LruCache>",
        target: Target::Le(0.8),
        rounds: 31,
        round: pinning::hit_vs_mutex_lru,
    },
    Field {
        name: "pin_hit_vs_quick_cache",
        measures: "the same / get on quick_cache",
        target: Target::Le(1.2),
        rounds: 31,
        round: pinning::hit_vs_quick_cache,
    },
    Field {
        name: "pin_hit_two_threads",
        measures: "the same, cost on each of two threads on distinct frames / on one thread alone",
        target: Target::Le(1.5),
        rounds: 51,
        round: pinning::hit_two_threads,
    },
    Field {
        name: "translate_vs_pread",
        measures: "translate a program of 10 CCWs (read, check, take 16 cached pages, write the shadow) / one 124-byte pread on a memfd",
        target: Target::Le(0.5),
        rounds: 51,
        round: translation::vs_pread,
    },
    Field {
        name: "translate_linear",
        measures: "the same, cost per CCW in a program of 16 x 256 CCWs / in one of 10",
        target: Target::Le(1.2),
        rounds: 51,
        round: translation::linear,
    },
    Field {
        name: "null_iops_vs_sync",
        measures: "null device, 64 subchannels, one shard, I/Os a second, ours / sync-epoll",
        target: Target::Ge(5.0),
        rounds: 11,
        round: service::null_iops_vs_sync,
    },
    Field {
        name: "allocs_per_io",
        measures: "heap allocations per request in the steady state, null devices and FBA disks",
        target: Target::Eq(0.0),
        rounds: 1,
        round: service::allocs_per_io,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_words_of_one_key() {
        let names: HashSet<&str> = FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), FIELDS.len());
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.iter().all(|name| name.chars().all(word)));
    }

    #[test]
    fn every_figure_can_be_measured() {
        for field in FIELDS {
            let figure = field
                .measure(1, 1, |_| {})
                .unwrap_or_else(|error| panic!("{}: {error}", field.name));
            assert!(figure.value >= 0.0 && figure.low <= figure.high, "{}: {figure}", field.name);
        }
    }
}
