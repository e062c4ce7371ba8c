//! Trees that look like a machine, for tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::tree::Tree;

/// A tree in a temporary folder.
#[derive(Debug)]
pub(super) struct Machine {
    folder: TempDir,
}

impl Machine {
    /// Some UUID.
    pub(super) const UUID: &str = "e78f619d-4ec1-4b7f-b627-751cfc8452c9";

    /// One that describes nothing.
    pub(super) fn empty() -> Self {
        Machine { folder: tempfile::tempdir().unwrap() }
    }

    /// An s390x machine whose kernel has all that vfio-ccw needs, without subchannels.
    pub(super) fn s390x() -> Self {
        let machine = Machine::empty();
        machine.write("proc/sys/kernel/arch", "s390x\n");
        machine.write("proc/sys/kernel/osrelease", "6.12.117-own\n");
        for folder in ["sys/bus/css/devices", "sys/bus/css/drivers/vfio_ccw", "sys/bus/mdev"] {
            machine.folder(folder);
        }
        machine.write("dev/vfio/vfio", "");
        machine.write("dev/iommu", "");
        machine.write("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
        machine
    }

    /// A look at it.
    pub(super) fn tree(&self) -> Tree {
        Tree::new(self.root())
    }

    /// Where it lies.
    pub(super) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a folder, and those above.
    pub(super) fn folder(&self, path: &str) {
        fs::create_dir_all(self.root().join(path)).unwrap();
    }

    /// Makes a file, or replaces what is in it.
    pub(super) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a symbolic link, or replaces it.
    pub(super) fn link(&self, path: &str, target: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // There is none the first time.
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// Takes a file away.
    pub(super) fn remove(&self, path: &str) {
        fs::remove_file(self.root().join(path)).unwrap();
    }

    /// Makes a subchannel for I/O with a device, as the kernel shows it: on the bus is a link.
    pub(super) fn device(&self, subchannel: &str, device: &str, driver: &str) {
        let folder = format!("sys/devices/css0/{subchannel}");
        self.write(&format!("{folder}/type"), "0\n");
        self.write(&format!("{folder}/dev_busid"), format!("{device}\n"));
        self.write(&format!("{folder}/driver_override"), "(null)\n");
        self.link(&format!("{folder}/driver"), &format!("../../../bus/css/drivers/{driver}"));
        self.link(
            &format!("sys/bus/css/devices/{subchannel}"),
            &format!("../../../devices/css0/{subchannel}"),
        );
    }

    /// Makes a mediated device of a subchannel, in a group and with a character device of the same
    /// number.
    pub(super) fn mdev(&self, subchannel: &str, uuid: &str, number: u32) {
        let folder = format!("sys/devices/css0/{subchannel}/{uuid}");
        let group = format!("../../../../kernel/iommu_groups/{number}");
        self.link(&format!("{folder}/iommu_group"), &group);
        self.write(&format!("{folder}/vfio-dev/vfio{number}/dev"), "253:0\n");
        self.write(&format!("dev/vfio/{number}"), "");
        self.write(&format!("dev/vfio/devices/vfio{number}"), "");
    }
}
