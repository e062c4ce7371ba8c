//! Programs that may change themselves.

/// What becomes of a program whose ORB forbids prefetching (P = 0): it may store into its own CCWs
/// before they are executed, as IPL programs do (READ IPL into the program, then on to what was read).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unfetched {
    /// The software channel subsystem fetches each CCW from guest memory when it executes it, once.
    /// Data pages are not pinned for it.
    #[default]
    Execute,
    /// It is translated as a whole before it starts, as the kernel's vfio-ccw does: programs that do
    /// not change themselves run as they should, others do not.
    Prefetch,
    /// It ends with a program check at its first CCW.
    Refuse,
}
