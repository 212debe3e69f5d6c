//! From the pickled value to named tensors: the path through dictionaries, lists and attributes, joined by dots.

use super::value::{Heap, Index, Node, Object, TensorView, Value};
use std::collections::BTreeMap;

/// Containers inside containers, down to a tensor.
const DEPTH_LIMIT: usize = 64;
/// Entries of all containers on the way; a container that is shared counts each time it is met.
const VISIT_LIMIT: usize = 10_000_000;
/// With their optimiser's state, the largest checkpoints hold some ten thousand tensors.
const TENSOR_LIMIT: usize = 200_000;
/// Bytes of all names together.
const NAME_SIZE_LIMIT: usize = 64 << 20;

/// Every tensor below `root`. Cycles are cut where they close.
pub fn tensors(heap: &Heap, root: Value) -> Result<BTreeMap<String, TensorView>, String> {
    let open = vec![false; heap.len()];
    let mut naming =
        Naming { heap, leads_to_tensor: leads_to_tensor(heap), open, depth: 0, path: Vec::new(), visit_count: 0, name_size: 0, views: BTreeMap::new() };
    naming.visit(root)?;
    Ok(naming.views)
}

fn children(node: &Node) -> Box<dyn Iterator<Item = Value> + '_> {
    match node {
        Node::Tuple(items) | Node::List(items) => Box::new(items.iter().copied()),
        Node::Dict(entries) => Box::new(entries.iter().map(|&(_, value)| value)),
        Node::Object(Object { entries, states }) => Box::new(entries.iter().map(|&(_, value)| value).chain(states.iter().copied())),
        Node::Text(_) | Node::Global(_) | Node::Storage(_) | Node::Tensor(_) => Box::new(std::iter::empty()),
    }
}

/// Which nodes have a tensor somewhere below. Only these need to be walked: the objects of a training program refer to each other in many circles.
fn leads_to_tensor(heap: &Heap) -> Vec<bool> {
    let mut parents: Vec<Vec<Index>> = vec![Vec::new(); heap.len()];
    let mut leads = vec![false; heap.len()];
    let mut fresh = Vec::new();
    for (index, node) in heap.iter() {
        for child in children(node) {
            if let Value::Node(child) = child {
                parents[child.position()].push(index);
            }
        }
        if matches!(node, Node::Tensor(_)) {
            leads[index.position()] = true;
            fresh.push(index);
        }
    }
    while let Some(index) = fresh.pop() {
        for parent in std::mem::take(&mut parents[index.position()]) {
            if !std::mem::replace(&mut leads[parent.position()], true) {
                fresh.push(parent);
            }
        }
    }
    leads
}

struct Naming<'a> {
    heap: &'a Heap,
    leads_to_tensor: Vec<bool>,
    /// Nodes between the root and here.
    open: Vec<bool>,
    depth: usize,
    /// Keys between the root and here.
    path: Vec<String>,
    visit_count: usize,
    name_size: usize,
    views: BTreeMap<String, TensorView>,
}

impl Naming<'_> {
    fn visit(&mut self, value: Value) -> Result<(), String> {
        let Value::Node(index) = value else { return Ok(()) };
        if !self.leads_to_tensor[index.position()] || self.open[index.position()] {
            return Ok(());
        }
        self.visit_count += 1 + children(self.heap.node(index)).count();
        if self.visit_count > VISIT_LIMIT {
            return Err(format!("expected at most {VISIT_LIMIT} nested values, found more; hint: dictionaries that share each other many times over?"));
        }
        if self.depth == DEPTH_LIMIT {
            return Err(format!("expected tensors in at most {DEPTH_LIMIT} nested containers, found more below `{}`", self.shown_path()));
        }
        self.open[index.position()] = true;
        self.depth += 1;
        self.visit_node(index)?;
        self.depth -= 1;
        self.open[index.position()] = false;
        Ok(())
    }

    fn visit_node(&mut self, index: Index) -> Result<(), String> {
        match self.heap.node(index) {
            Node::Tensor(view) => self.insert(view),
            Node::Tuple(items) | Node::List(items) => items.iter().enumerate().try_for_each(|(place, &item)| self.visit_at(place.to_string(), item)),
            Node::Dict(entries) => self.visit_entries(entries),
            Node::Object(Object { entries, states }) => {
                self.visit_entries(entries)?;
                states.iter().try_for_each(|&state| self.visit(state))
            }
            Node::Text(_) | Node::Global(_) | Node::Storage(_) => Ok(()),
        }
    }

    fn visit_entries(&mut self, entries: &[(Value, Value)]) -> Result<(), String> {
        // The last entry with a key wins, as in Python.
        let mut latest = BTreeMap::new();
        for &(key, value) in entries {
            let key = match key {
                Value::Integer(number) => number.to_string(),
                // Other keys make no name.
                _ => match self.heap.text(key) {
                    Some(text) => text.to_string(),
                    None => continue,
                },
            };
            latest.insert(key, value);
        }
        latest.into_iter().try_for_each(|(key, value)| self.visit_at(key, value))
    }

    fn visit_at(&mut self, key: String, value: Value) -> Result<(), String> {
        self.path.push(key);
        self.visit(value)?;
        self.path.pop();
        Ok(())
    }

    fn insert(&mut self, view: &TensorView) -> Result<(), String> {
        self.name_size += self.path.iter().map(|key| key.len() + 1).sum::<usize>();
        if self.name_size > NAME_SIZE_LIMIT {
            return Err(format!("expected at most {NAME_SIZE_LIMIT} bytes of tensor names, found more"));
        }
        if self.views.len() == TENSOR_LIMIT {
            return Err(format!("expected at most {TENSOR_LIMIT} tensors, found more"));
        }
        match self.views.insert(self.path.join("."), view.clone()) {
            None => Ok(()),
            Some(_) => Err(format!("two tensors are named `{}`", self.shown_path())),
        }
    }

    /// The path, cut where it is too long for a message.
    fn shown_path(&self) -> String {
        let path = self.path.join(".");
        match path.char_indices().nth(200) {
            Some((end, _)) => format!("{}...", &path[..end]),
            None => path,
        }
    }
}
