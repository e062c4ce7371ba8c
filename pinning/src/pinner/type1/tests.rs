//! The pinner over the model; and what can be tried of the kernel without a container.

use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::model::Model;
use super::*;
use crate::FRAME;
use crate::pinner::WindowError;
use crate::pinner::contract::{self, Windows, window_error};
use crate::pinner::guest::{Guest, START};

const OFFSET: u64 = 1 << 40;

fn pinner(windows: u32) -> (Type1<Model>, Model) {
    let model = Model::new(windows, None);
    (Type1::with_iommu(model.clone(), OFFSET, windows), model)
}

fn iova(frame: u64) -> u64 {
    OFFSET + START + frame * FRAME
}

#[test]
fn a_window_is_where_the_offset_puts_it() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner(8);
    pinner.pin(&guest.runs(&[(0, 1), (1, 1), (5, 2)])).unwrap();
    let expected = Windows::from([(iova(0), FRAME), (iova(1), FRAME), (iova(5), 2 * FRAME)]);
    assert_eq!(model.windows(), expected);
    assert_eq!(pinner.most_runs(), Some(8));
    assert!(pinner.is_needed() && !pinner.joins_frames() && !pinner.keeps_place());
}

#[test]
fn adjacent_windows_go_in_one_call() {
    let guest = Guest::new(16);
    let (pinner, model) = pinner(16);
    let runs = guest.runs(&[(2, 1), (3, 1), (4, 2), (6, 1), (9, 1), (11, 1), (12, 1)]);
    pinner.pin(&runs).unwrap();
    pinner.unpin(&runs).unwrap();
    assert_eq!(model.unmaps(), 3, "frames 2 to 6, 9, and 11 to 12");
    assert_eq!(model.windows(), Windows::new());
}

#[test]
fn runs_that_do_not_ascend_are_not_joined() {
    let guest = Guest::new(4);
    let (pinner, model) = pinner(4);
    let runs = guest.runs(&[(2, 1), (1, 1), (0, 1)]);
    pinner.pin(&runs).unwrap();
    pinner.unpin(&runs).unwrap();
    assert_eq!((model.unmaps(), model.windows().len()), (3, 0));
}

#[test]
fn a_full_container_stops_at_the_exact_run() {
    let guest = Guest::new(4);
    let (pinner, model) = pinner(2);
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1), (2, 1), (3, 1)])).unwrap_err();
    assert_eq!(stopped.done, 2);
    assert!(matches!(window_error(&stopped), WindowError::Map { iova: at, .. } if *at == iova(2)));
    assert!(stopped.source.to_string().contains("dma_entry_limit"), "{}", stopped.source);
    assert_eq!(model.windows().into_keys().collect::<Vec<_>>(), [iova(0), iova(1)]);
    pinner.unpin(&guest.runs(&[(0, 1), (1, 1)])).unwrap();
    pinner.pin(&guest.runs(&[(3, 1)])).unwrap();
}

#[test]
fn too_little_lockable_memory_names_the_limit() {
    let guest = Guest::new(4);
    let model = Model::new(8, Some(3 * FRAME));
    let pinner = Type1::with_iommu(model.clone(), 0, 8);
    let stopped = pinner.pin(&guest.runs(&[(0, 2), (2, 2)])).unwrap_err();
    assert_eq!(stopped.done, 1);
    assert_eq!(stopped.source.kind(), io::ErrorKind::OutOfMemory);
    assert!(stopped.source.to_string().contains("RLIMIT_MEMLOCK"), "{}", stopped.source);
    pinner.unpin(&guest.runs(&[(0, 2)])).unwrap();
    pinner.pin(&guest.runs(&[(2, 2)])).unwrap();
}

#[test]
fn what_another_user_mapped_is_left_alone() {
    let guest = Guest::new(4);
    let (pinner, model) = pinner(8);
    model.insert(iova(1), FRAME);
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1), (2, 1)])).unwrap_err();
    assert_eq!(stopped.done, 1);
    assert!(stopped.source.to_string().contains("offset"), "{}", stopped.source);
    pinner.unpin(&guest.runs(&[(0, 1)])).unwrap();
    assert_eq!(model.windows(), Windows::from([(iova(1), FRAME)]));
}

#[test]
fn a_refused_unmap_leaves_the_whole_call_pinned() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner(8);
    let runs = guest.runs(&[(0, 1), (2, 1), (3, 1), (4, 1)]);
    pinner.pin(&runs).unwrap();
    // Somebody replaces the last window by one that sticks out: version 2 cuts nothing.
    model.remove(iova(4));
    model.insert(iova(4), 2 * FRAME);
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 1);
    assert!(matches!(window_error(&stopped), WindowError::Unmap { len, .. } if *len == 3 * FRAME));
    assert_eq!(model.windows().into_keys().collect::<Vec<_>>(), [iova(2), iova(3), iova(4)]);
}

#[test]
fn windows_that_somebody_took_away_are_reported_and_not_counted() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner(8);
    let runs = guest.runs(&[(0, 1), (1, 1), (2, 1), (6, 1)]);
    pinner.pin(&runs).unwrap();
    model.remove(iova(1));
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 3, "none of the call's windows is there any more");
    let WindowError::Missing { len, unmapped, .. } = window_error(&stopped) else {
        panic!("{stopped:?}");
    };
    assert_eq!((*len, *unmapped), (3 * FRAME, 2 * FRAME));
    assert_eq!(model.windows(), Windows::from([(iova(6), FRAME)]));
}

#[test]
fn an_iova_beyond_the_last_is_refused_before_the_kernel_sees_it() {
    let guest = Guest::new(2);
    let model = Model::new(8, None);
    let pinner = Type1::with_iommu(model.clone(), u64::MAX - 0xfff - START - FRAME, 8);
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1)])).unwrap_err();
    assert_eq!(stopped.done, 1, "{stopped:?}");
    assert!(matches!(window_error(&stopped), WindowError::Beyond { .. }));
    let stopped = pinner.unpin(&guest.runs(&[(1, 1)])).unwrap_err();
    assert_eq!(stopped.done, 0);
}

#[test]
fn a_descriptor_that_is_no_container_is_refused() {
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(matches!(Container::new(null), Err(ContainerError::NotAContainer)));
}

#[test]
fn a_container_without_a_group_is_refused() {
    let Ok(file) = File::options().read(true).write(true).open("/dev/vfio/vfio") else {
        println!("SKIPPED: /dev/vfio/vfio cannot be opened");
        return;
    };
    assert!(Container::new(OwnedFd::from(file)).is_err());
}

proptest! {
    #[test]
    fn windows_are_what_is_pinned(
        steps in contract::steps(48),
        windows in 8..64u32,
        locked in prop::option::of(8..64u64),
    ) {
        let guest = Guest::new(48);
        let model = Model::new(windows, locked.map(|pages| pages * FRAME));
        let pinner = Type1::with_iommu(model.clone(), OFFSET, windows);
        let seen = || model.windows().into_iter().map(|(iova, len)| (iova - OFFSET, len)).collect();
        contract::holds(&pinner, &guest, &steps, seen)?;
    }
}
