//! Guest memory in one layout: what programs are translated against and what devices reach.
//!
//! The layout changes under running programs, as in read-copy-update: a new view takes the place of
//! the old one between programs, a program keeps the view that it was fetched under, and memory that
//! has left the layout is free when the last user of the old view has gone.

use std::sync::{Arc, mpsc};

use vfio_ccw_pinning::GuestMap;

use crate::channel_subsystem::{DmaSpace, WindowError};
use crate::shadow::Arena;

/// One shard's view of guest memory.
#[derive(Debug)]
pub(super) struct View {
    pub(super) map: Arc<GuestMap>,
    pub(super) dma: Arc<DmaSpace>,
}

/// A layout on its way to the shards.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) map: Arc<GuestMap>,
    _users: mpsc::Sender<()>,
}

/// Tells when nobody uses a layout any more.
#[derive(Debug)]
pub(super) struct Users(pub(super) mpsc::Receiver<()>);

impl Layout {
    /// A layout of `map`, and the means to learn of its end.
    pub(super) fn new(map: Arc<GuestMap>) -> (Self, Users) {
        let (users, all_gone) = mpsc::channel();
        (Layout { map, _users: users }, Users(all_gone))
    }

    /// The view that a shard with this arena has of it. Whoever may touch guest memory holds on to
    /// the view or to its DMA space.
    pub(super) fn view(self, arena: &Arena) -> Result<View, WindowError> {
        let map = self.map.clone();
        let dma = DmaSpace::in_process(&self.map, Arc::new(self.clone()), arena)?;
        Ok(View { map, dma: Arc::new(dma) })
    }
}
