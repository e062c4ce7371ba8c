//! The pinner over the model, the model in type1's place, and what can be tried of the kernel.

use std::fs::File;
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::model::Model;
use super::*;
use crate::FRAME;
use crate::pinner::contract::{self, Windows, window_error};
use crate::pinner::guest::{Guest, START};
use crate::pinner::{Type1, WindowError};

const OFFSET: u64 = 1 << 36;

fn pinner() -> (Iommufd<Model>, Model) {
    let model = Model::new(None);
    (Iommufd::new(model.clone(), OFFSET), model)
}

fn iova(frame: u64) -> u64 {
    OFFSET + START + frame * FRAME
}

#[test]
fn a_window_is_where_the_offset_puts_it() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner();
    let runs = guest.runs(&[(0, 1), (1, 1), (5, 2)]);
    pinner.pin(&runs).unwrap();
    let expected = Windows::from([(iova(0), FRAME), (iova(1), FRAME), (iova(5), 2 * FRAME)]);
    assert_eq!(model.windows(), expected);
    assert_eq!(pinner.most_runs(), None);
    assert!(pinner.is_needed() && !pinner.joins_frames() && !pinner.keeps_place());
    pinner.unpin(&runs).unwrap();
    assert_eq!(model.windows(), Windows::new());
}

#[test]
fn refusals_stop_at_the_exact_run_and_name_a_remedy() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner();
    model.insert(iova(2), FRAME);
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1), (2, 1), (3, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (2, io::ErrorKind::AlreadyExists));
    assert!(stopped.source.to_string().contains("offset"), "{}", stopped.source);
    assert_eq!(model.windows().len(), 3);

    model.narrow(iova(5));
    let stopped = pinner.pin(&guest.runs(&[(4, 1), (5, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::InvalidInput));
    assert!(stopped.source.to_string().contains("devices reach"), "{}", stopped.source);

    let tight = Iommufd::new(Model::new(Some(FRAME)), 0);
    let stopped = tight.pin(&guest.runs(&[(0, 1), (1, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::OutOfMemory));
    assert!(stopped.source.to_string().contains("RLIMIT_MEMLOCK"), "{}", stopped.source);
}

#[test]
fn an_unmap_that_would_cut_stops_at_the_exact_run() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner();
    let runs = guest.runs(&[(0, 1), (1, 1), (2, 1)]);
    pinner.pin(&runs).unwrap();
    model.remove(iova(2));
    model.insert(iova(2), 2 * FRAME);
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 2);
    assert!(
        matches!(window_error(&stopped), WindowError::Unmap { iova: at, .. } if *at == iova(2))
    );
    assert_eq!(model.windows(), Windows::from([(iova(2), 2 * FRAME)]));
}

#[test]
fn windows_that_somebody_made_smaller_are_reported_and_not_counted() {
    let guest = Guest::new(8);
    let (pinner, model) = pinner();
    let runs = guest.runs(&[(0, 2), (4, 1)]);
    pinner.pin(&runs).unwrap();
    model.remove(iova(0));
    model.insert(iova(1), FRAME);
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 1, "nothing of the first run is there any more");
    assert!(matches!(window_error(&stopped), WindowError::Missing { unmapped: FRAME, .. }));
    assert_eq!(model.windows(), Windows::from([(iova(4), FRAME)]));
}

/// iommufd can stand where a type1 container did. Its unmap then takes windows away one by one, and
/// says how far it came: the type1 pinner joins runs, and must count by that.
#[test]
fn in_place_of_type1_a_joined_unmap_counts_how_far_it_came() {
    let guest = Guest::new(8);
    let model = Model::in_place_of_type1();
    let pinner = Type1::with_iommu(model.clone(), OFFSET, u32::MAX);
    let runs = guest.runs(&[(0, 1), (1, 2), (3, 1), (4, 1)]);
    pinner.pin(&runs).unwrap();
    model.remove(iova(4));
    model.insert(iova(4), 2 * FRAME);
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 3);
    assert_eq!(model.windows(), Windows::from([(iova(4), 2 * FRAME)]));
}

#[test]
fn a_descriptor_that_is_no_iommufd_is_refused() {
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    assert!(matches!(Ioas::new(null(), 1), Err(IoasError::NotAnIommufd)));
    assert!(matches!(Ioas::allocate(null()), Err(IoasError::NotAnIommufd)));
}

/// The kernel maps windows in an address space that no device is attached to.
#[test]
fn the_kernels_own_address_space_behaves_as_the_model() {
    let Ok(file) = File::options().read(true).write(true).open("/dev/iommu") else {
        println!("SKIPPED: /dev/iommu cannot be opened");
        return;
    };
    let missing = Ioas::new(OwnedFd::from(file.try_clone().unwrap()), u32::MAX);
    assert!(matches!(missing, Err(IoasError::NoSuchIoas { id: u32::MAX })), "{missing:?}");
    let made = Ioas::allocate(OwnedFd::from(file.try_clone().unwrap())).unwrap();
    let ioas = Ioas::new(OwnedFd::from(file), made.id()).unwrap();
    let guest = Guest::new(8);
    let pinner = Iommufd::new(ioas, OFFSET);
    let runs = guest.runs(&[(0, 1), (1, 1), (4, 2)]);
    pinner.pin(&runs).unwrap();
    let stopped = pinner.pin(&guest.runs(&[(2, 1), (1, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::AlreadyExists));
    let stopped = pinner.unpin(&guest.runs(&[(0, 1), (4, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::NotFound));
    pinner.unpin(&guest.runs(&[(1, 1), (2, 1), (4, 2)])).unwrap();
    assert_eq!(pinner.unpin(&runs).unwrap_err().done, 0, "nothing is left");
}

proptest! {
    #[test]
    fn windows_are_what_is_pinned(
        steps in contract::steps(48),
        locked in prop::option::of(8..64u64),
    ) {
        let guest = Guest::new(48);
        let model = Model::new(locked.map(|pages| pages * FRAME));
        let pinner = Iommufd::new(model.clone(), OFFSET);
        let seen = || model.windows().into_iter().map(|(iova, len)| (iova - OFFSET, len)).collect();
        contract::holds(&pinner, &guest, &steps, seen)?;
    }

    #[test]
    fn windows_are_what_is_pinned_in_place_of_type1(steps in contract::steps(48)) {
        let guest = Guest::new(48);
        let model = Model::in_place_of_type1();
        let pinner = Type1::with_iommu(model.clone(), 0, u32::MAX);
        contract::holds(&pinner, &guest, &steps, || model.windows())?;
    }
}
