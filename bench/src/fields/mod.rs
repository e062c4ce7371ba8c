//! The figures, by topic, in the order in which they are measured.

pub mod fio;
mod huge_pages;
pub mod observability;
pub mod pinning;
pub mod remote;
pub mod rings;
pub mod scale;
pub mod service;
pub mod translation;
pub mod waiting;

use crate::ratio::{Field, Target};

/// What a figure needs and this machine does not have. The figure is then absent.
#[derive(Debug, thiserror::Error)]
#[error("this machine lacks what it takes: {0}")]
pub struct Lacking(
    /// What is missing.
    pub String,
);

/// Every figure that can be measured. A figure whose part is not built is not here.
pub const FIELDS: &[Field] = &[
    // First: what other figures have left in the heap would count as free.
    Field {
        name: "idle_subchannel_bytes",
        measures: "resident bytes per idle subchannel, ring of 16 included, with 65,536 attached; counted once a process",
        target: Target::Le(4096.0),
        rounds: 9,
        round: scale::idle_subchannel_bytes,
    },
    Field {
        name: "ring_spsc_vs_rtrb",
        measures: "one producer, push+pop of 8 bytes on one thread, ours / rtrb",
        target: Target::Le(1.0),
        rounds: 198,
        round: rings::spsc_vs_rtrb,
    },
    Field {
        name: "ring_mpsc_vs_arrayqueue",
        measures: "two producer threads and a consumer, 40 bytes, ours / crossbeam ArrayQueue",
        target: Target::LeOrEqual { le: 0.8, equal: 1.0 },
        rounds: 153,
        round: rings::mpsc_vs_array_queue,
    },
    Field {
        name: "ring_burst32_vs_rtrb_chunk",
        measures: "one producer, bursts of 32 of 8 bytes on one thread, per item, ours / rtrb chunks",
        target: Target::Le(1.0),
        rounds: 198,
        round: rings::burst32_vs_rtrb_chunk,
    },
    Field {
        name: "pin_hit_vs_mutex_lru",
        measures: "take + release of a cached frame, 16-page programs over 65,536 frames, ours / get on Mutex<LruCache>",
        target: Target::Le(0.8),
        rounds: 36,
        round: pinning::hit_vs_mutex_lru,
    },
    Field {
        name: "pin_hit_vs_quick_cache",
        measures: "the same / get on quick_cache",
        target: Target::Le(1.2),
        rounds: 36,
        round: pinning::hit_vs_quick_cache,
    },
    Field {
        name: "pin_hit_two_threads",
        measures: "the same, cost on each of two threads on distinct frames / on one thread alone",
        target: Target::Le(1.5),
        rounds: 54,
        round: pinning::hit_two_threads,
    },
    Field {
        name: "pin_batch64_vs_single",
        measures: "miss with the resident pinner on pages that are there (pin for a program, unpin behind it: on-demand), cost per page in programs of 64 adjacent pages / of one page",
        target: Target::Le(0.3),
        rounds: 36,
        round: pinning::batch64_vs_single,
    },
    Field {
        name: "pin_huge_vs_single",
        measures: "the same, cost per 4 KiB of a 2 MiB frame on a huge page / of a single-page miss",
        target: Target::Le(0.1),
        rounds: 36,
        round: pinning::huge_vs_single,
    },
    Field {
        name: "cached_vs_pinned_iops",
        measures: "64 FBA disks, 4 KiB random reads of a 64 MiB volume in the page cache into 23 MiB of a 256 MiB guest, budget a tenth of the guest, I/Os a second, cached / pinned",
        target: Target::Ge(0.95),
        rounds: 18,
        round: pinning::cached_vs_pinned_iops,
    },
    Field {
        name: "cached_vs_pinned_bytes",
        measures: "the same, most bytes pinned, cached / pinned",
        target: Target::Le(0.1),
        rounds: 9,
        round: pinning::cached_vs_pinned_bytes,
    },
    Field {
        name: "cached_vs_ondemand_iops",
        measures: "the same, I/Os a second, cached / on-demand",
        target: Target::Ge(3.0),
        rounds: 18,
        round: pinning::cached_vs_ondemand_iops,
    },
    Field {
        name: "translate_vs_pread",
        measures: "translate a program of 10 CCWs (read, check, take 16 cached pages, write the shadow) / one 124-byte pread on a memfd",
        target: Target::Le(0.5),
        rounds: 54,
        round: translation::vs_pread,
    },
    Field {
        name: "translate_linear",
        measures: "the same, cost per CCW in a program of 16 x 256 CCWs / in one of 10",
        target: Target::Le(1.2),
        rounds: 54,
        round: translation::linear,
    },
    Field {
        name: "null_iops_vs_sync",
        measures: "null device, 64 subchannels, one shard, I/Os a second, ours / sync-epoll",
        target: Target::Ge(5.0),
        rounds: 18,
        round: service::null_iops_vs_sync,
    },
    Field {
        name: "null_iops_per_core",
        measures: "the same, ours alone: SSCH a second on one shard's core",
        target: Target::Ge(2_000_000.0),
        rounds: 18,
        round: service::null_iops_per_core,
    },
    Field {
        name: "qd1_polled_vs_sync",
        measures: "one program at a time, median from submission to completion across two threads that look while it pays / across two threads of sync-epoll",
        target: Target::Le(0.4),
        rounds: 18,
        round: waiting::polled_vs_sync,
    },
    Field {
        name: "qd1_sleep_vs_sync",
        measures: "the same where both threads sleep at once",
        target: Target::Le(1.15),
        rounds: 18,
        round: waiting::sleep_vs_sync,
    },
    Field {
        name: "idle_core_share",
        measures: "share of a core that an idle service with 1,024 subchannels takes over 10 s; watched once a process",
        target: Target::Le(0.005),
        rounds: 9,
        round: waiting::idle_core_share,
    },
    Field {
        name: "scale_4096_vs_64",
        measures: "null devices, time per I/O at 4,096 active subchannels / at 64",
        target: Target::Le(1.5),
        rounds: 18,
        round: scale::busy_4096_vs_64,
    },
    Field {
        name: "few_among_many",
        measures: "null devices, I/Os a second of 64 active subchannels among 65,536 / of 64 alone",
        target: Target::Ge(0.95),
        rounds: 18,
        round: scale::few_among_many,
    },
    Field {
        name: "neighbour_p99",
        measures: "8 null devices, 99th percentile of latency next to a device that never answers and one that takes 1 ms a command, on one shard / without them",
        target: Target::Le(1.5),
        rounds: 18,
        round: scale::neighbour_p99,
    },
    Field {
        name: "fba_randread_vs_fio",
        measures: "4 KiB random reads of a 64 MiB file in the page cache, 32 at a time, all threads on one processor, I/Os a second, 32 FBA disks / fio with io_uring, registered buffers and files and batches of 32",
        target: Target::Ge(0.8),
        rounds: 18,
        round: fio::randread_vs_fio,
    },
    Field {
        name: "remote_fast_vs_inprocess",
        measures: "null devices, 64 subchannels, I/Os a second with the devices in another process, over a lane / in this one",
        target: Target::Ge(0.7),
        rounds: 18,
        round: remote::fast_vs_inprocess,
    },
    Field {
        name: "remote_qd1_vs_pingpong",
        measures: "one program at a time on a null device of another process, median from submission to completion / of a signal of an eventfd to another process and back",
        target: Target::Le(1.5),
        rounds: 18,
        round: remote::qd1_vs_pingpong,
    },
    Field {
        name: "remote_kill_to_end_ms",
        measures: "milliseconds from SIGKILL to the server of 64 null devices, each with a program, to the last of their ends",
        target: Target::Le(100.0),
        rounds: 18,
        round: remote::kill_to_end_ms,
    },
    Field {
        name: "metrics_overhead",
        measures: "I/Os a second of null devices, 64 subchannels: metrics and flight recorder on / compiled out, two builds of this program",
        target: Target::Ge(0.97),
        rounds: 45,
        round: observability::metrics_overhead,
    },
    Field {
        name: "scrape_4096_ms",
        measures: "milliseconds of one scrape of a service with 4,096 subchannels, by HTTP",
        target: Target::Le(50.0),
        rounds: 18,
        round: observability::scrape_4096_ms,
    },
    Field {
        name: "scrape_p99",
        measures: "p99 of null devices' programs, 4,096 subchannels: scraped once a second / not scraped",
        target: Target::Le(1.2),
        rounds: 9,
        round: observability::scrape_p99,
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
    use crate::ratio::FieldError;
    use std::collections::HashSet;
    use vfio_ccw::ServiceError;

    #[test]
    fn names_are_unique_and_words_of_one_key() {
        let names: HashSet<&str> = FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), FIELDS.len());
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        assert!(names.iter().all(|name| name.chars().all(word)));
    }

    /// Whether it is this machine's fault: no huge pages, or no right to lock a whole guest.
    fn is_lack(error: &FieldError) -> bool {
        let service = error.downcast_ref::<ServiceError>();
        error.is::<Lacking>() || matches!(service, Some(ServiceError::Memlock { .. }))
    }

    #[test]
    fn every_figure_can_be_measured() {
        for field in FIELDS {
            let mut values = Vec::new();
            match field.each_round(1..2, 1, |value| values.push(value)) {
                Ok(()) => assert!(values[0] >= 0.0, "{}: {values:?}", field.name),
                Err(error) if is_lack(&error) => println!("SKIPPED: {}: {error}", field.name),
                Err(error) => panic!("{}: {error}", field.name),
            }
        }
    }
}
