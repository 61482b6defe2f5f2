//! The kernel object: the bytes that this build carries, and what their maps should look like.

use std::collections::BTreeMap;

use crate::error::{DatapathError, Result};
use crate::pin::Shape;

/// A parser casts the bytes to ELF structs, so they must be aligned like those.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../ebpf/objects/quilla.bpf.o"));

/// A compiled kernel object.
#[derive(Clone, Copy)]
pub struct Object<'a> {
    bytes: &'a [u8],
}

impl std::fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("len", &self.bytes.len()).finish()
    }
}

impl Object<'static> {
    /// The one committed under `ebpf/objects`, which this crate was built with.
    pub fn embedded() -> Self {
        Self { bytes: &EMBEDDED.0 }
    }
}

impl<'a> Object<'a> {
    /// Another one, for tests of a changed data path. The bytes must be aligned to 8.
    pub fn from_bytes(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The ELF file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The maps it declares, by name.
    pub(crate) fn shapes(&self) -> Result<BTreeMap<String, Shape>> {
        let object = aya_obj::Object::parse(self.bytes)
            .map_err(|source| DatapathError::Object { source: Box::new(source) })?;
        let shape = |map: &aya_obj::Map| Shape {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        };
        Ok(object.maps.iter().map(|(name, map)| (name.clone(), shape(map))).collect())
    }
}
