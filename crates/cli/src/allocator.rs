//! The memory allocator: jemalloc, told to keep pages and to ask for huge ones.
//!
//! Tensors of megabytes come and go hundreds of times a step. The system's allocator hands such blocks back at once, so that every tensor begins with
//! thousands of page faults and pages to be zeroed: a fifth of the processor time of a picture (`smalti bench --rows A,B`; benchsuite/README.md).
//! The libraries leave the choice to whoever uses them.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Read by jemalloc before `main`, a C string; `_RJEM_MALLOC_CONF` in the environment is read after it. One arena, so that a block freed by one thread serves
/// the next; no special arena for large blocks, which would return them; no decay.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static SETTINGS: &[u8; 60] = b"thp:always,oversize_threshold:0,narenas:1,dirty_decay_ms:-1\0";
