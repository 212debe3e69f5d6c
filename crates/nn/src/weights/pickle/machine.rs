//! The pickle machine (protocols 0 to 5; opcodes as in CPython's `Lib/pickletools.py`).
//!
//! It builds data and calls nothing: a pickle that asks for `os.system("...")` yields an opaque object. Memory is bounded by the limit on operations
//! and the size of the pickle; no size or index in the stream is trusted to allocate.

use super::value::{Global, Heap, Node, Object, Storage, TensorView, Value};
use std::collections::HashMap;

/// A tensor takes about 50 operations; optimiser states of large networks hold some ten thousand tensors.
const OPERATION_LIMIT: usize = 4_000_000;

/// Weights have at most six axes; PyTorch allows 64.
const AXIS_LIMIT: usize = 16;

/// PyTorch counts storages: `0`, `1`, ...
const STORAGE_KEY_LIMIT: usize = 64;

/// What a pickle made.
pub struct Run {
    pub root: Value,
    /// What `root` lies in.
    pub heap: Heap,
    /// Bytes up to and with STOP; what follows is not part of this pickle.
    pub size: usize,
}

/// Runs the pickle that `bytes` begin with, or says where and why it makes no sense.
pub fn run(bytes: &[u8]) -> Result<Run, String> {
    let mut machine =
        Machine { input: Input { bytes, place: 0 }, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), heap: Heap::default(), copied: 0 };
    for _ in 0..OPERATION_LIMIT {
        let place = machine.input.place;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Run { root, heap: machine.heap, size: machine.input.place }),
            Err(reason) => return Err(format!("pickle, byte {place}: {reason}")),
        }
    }
    Err(format!("pickle: expected at most {OPERATION_LIMIT} operations"))
}

struct Input<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.place..];
        if count > rest.len() {
            return Err(format!("truncated: expected {count} more bytes, found {}", rest.len()));
        }
        self.place += count;
        Ok(&rest[..count])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take gives what was asked for"))
    }

    fn byte(&mut self) -> Result<usize, String> {
        Ok(self.array::<1>()?[0].into())
    }

    fn u32(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn u64(&mut self) -> Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| "a length beyond this machine's memory".to_string())
    }

    /// Up to and without the next line break.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.place..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("truncated: expected a line")?;
        self.place += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn text(&mut self, count: usize) -> Result<String, String> {
        // Python writes lone surrogates in its own way ("surrogatepass"); no tensor is named so.
        Ok(String::from_utf8_lossy(self.take(count)?).into_owned())
    }
}

struct Machine<'a> {
    input: Input<'a>,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    heap: Heap,
    /// Entries of dictionaries that were copied out of lists.
    copied: usize,
}

impl Machine<'_> {
    /// One operation; the result of the pickle at STOP.
    fn step(&mut self) -> Result<Option<Value>, String> {
        match self.input.array::<1>()?[0] {
            b'.' => return self.pop().map(Some), // STOP
            0x80 => self.protocol()?,
            0x95 => drop(self.input.u64()?), // FRAME: only a hint for buffering

            // Numbers and constants.
            b'N' => self.push(Value::Other),
            0x88 => self.push(Value::Integer(1)),
            0x89 => self.push(Value::Integer(0)),
            b'J' => {
                let number = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Integer(number.into()));
            }
            b'K' => {
                let number = self.input.byte()?;
                self.push(Value::Integer(number as i64));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Integer(number.into()));
            }
            b'I' | b'L' => {
                let line = self.input.line()?;
                self.push(line.trim_end_matches('L').parse().map_or(Value::Other, Value::Integer));
            }
            0x8a => {
                let count = self.input.byte()?;
                self.long(count)?;
            }
            0x8b => {
                let count = self.input.u32()?;
                self.long(count)?;
            }
            b'F' => {
                self.input.line()?;
                self.push(Value::Other);
            }
            b'G' => {
                self.input.take(8)?;
                self.push(Value::Other);
            }

            // Text; bytes carry no names and no tensors.
            b'S' | b'V' => {
                let line = self.input.line()?;
                self.push_node(Node::Text(line.trim_matches(['\'', '"']).to_string()));
            }
            b'U' | 0x8c => {
                let count = self.input.byte()?;
                self.push_text(count)?;
            }
            b'T' | b'X' => {
                let count = self.input.u32()?;
                self.push_text(count)?;
            }
            0x8d => {
                let count = self.input.u64()?;
                self.push_text(count)?;
            }
            b'C' => {
                let count = self.input.byte()?;
                self.push_bytes(count)?;
            }
            b'B' => {
                let count = self.input.u32()?;
                self.push_bytes(count)?;
            }
            0x8e | 0x96 => {
                let count = self.input.u64()?;
                self.push_bytes(count)?;
            }

            // Containers.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop_or_mark()?,
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top);
            }
            b')' => self.push_node(Node::Tuple(Vec::new())),
            b'}' => self.push_node(Node::Dict(Vec::new())),
            b']' => self.push_node(Node::List(Vec::new())),
            0x8f => self.push_node(Node::Object(Object::default())), // EMPTY_SET
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::Tuple(items));
            }
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::List(items));
            }
            b'd' => {
                let items = pairs(self.pop_to_mark()?)?;
                self.push_node(Node::Dict(items));
            }
            0x91 => {
                self.pop_to_mark()?; // FROZENSET
                self.push(Value::Other);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = pairs(self.pop_to_mark()?)?;
                self.set(items)?;
            }

            // The memo.
            b'p' => {
                let key = self.memo_line()?;
                self.put(key)?;
            }
            b'q' => {
                let key = self.input.byte()?;
                self.put(key)?;
            }
            b'r' => {
                let key = self.input.u32()?;
                self.put(key)?;
            }
            0x94 => self.put(self.memo.len())?,
            b'g' => {
                let key = self.memo_line()?;
                self.recall(key)?;
            }
            b'h' => {
                let key = self.input.byte()?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.input.u32()?;
                self.recall(key)?;
            }

            // Classes, functions and what would be calls.
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push_node(Node::Global(Global::named(&module, &name)));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = self.heap.text(module).zip(self.heap.text(name)).map(|(module, name)| Global::named(module, name));
                self.push_node(Node::Global(global.ok_or("expected the names of a module and of something in it")?));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.reduce(callee, arguments)?;
            }
            0x92 => {
                let (_keywords, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.reduce(callee, arguments)?;
            }
            b'i' => {
                self.input.line()?; // module
                self.input.line()?; // name
                self.pop_to_mark()?;
                self.push_node(Node::Object(Object::default()));
            }
            b'o' => {
                self.pop_to_mark()?;
                self.push_node(Node::Object(Object::default()));
            }
            b'b' => self.build()?,
            b'Q' => {
                let identity = self.pop()?;
                self.persistent(identity)?;
            }
            b'P' => {
                self.input.line()?;
                self.push(Value::Other);
            }
            opcode @ (0x82..=0x84 | 0x97 | 0x98) => return Err(format!("opcode {opcode:#04x} needs things from outside the file, which PyTorch never writes")),
            opcode => return Err(format!("expected an opcode, found {opcode:#04x}")),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.input.byte()? {
            0..=5 => Ok(()),
            other => Err(format!("expected pickle protocol 0 to 5, found {other}")),
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn push_node(&mut self, node: Node) {
        let value = self.heap.insert(node);
        self.push(value);
    }

    fn push_text(&mut self, count: usize) -> Result<(), String> {
        let text = self.input.text(count)?;
        self.push_node(Node::Text(text));
        Ok(())
    }

    fn push_bytes(&mut self, count: usize) -> Result<(), String> {
        self.input.take(count)?;
        self.push(Value::Other);
        Ok(())
    }

    /// A little-endian two's complement number of any length.
    fn long(&mut self, count: usize) -> Result<(), String> {
        let bytes = self.input.take(count)?;
        let number = match bytes.last() {
            None => Value::Integer(0),
            Some(_) if count > 8 => Value::Other,
            Some(last) => {
                let mut extended = if *last >= 0x80 { [0xff; 8] } else { [0; 8] };
                extended[..count].copy_from_slice(bytes);
                Value::Integer(i64::from_le_bytes(extended))
            }
        };
        self.push(number);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value, String> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "expected a value on the stack, found none".to_string())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_or_mark(&mut self) -> Result<(), String> {
        if self.stack.len() == self.floor() {
            self.marks.pop().map(drop).ok_or_else(|| "expected a value on the stack, found none".to_string())
        } else {
            self.pop().map(drop)
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("expected a mark on the stack, found none")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let items = self.stack.split_off(start.ok_or("expected more values on the stack")?);
        self.push_node(Node::Tuple(items));
        Ok(())
    }

    /// What the top of the stack is, to be changed in place.
    fn top_node(&mut self) -> Result<Option<&mut Node>, String> {
        Ok(match self.top()? {
            Value::Node(index) => Some(self.heap.node_mut(index)),
            Value::Other | Value::Integer(_) => None,
        })
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), String> {
        match self.top_node()? {
            Some(Node::List(list)) => list.extend(items),
            // Sets and list-like instances of unknown classes: what they hold has no name.
            Some(Node::Object(_)) | None => {}
            Some(other) => return Err(format!("expected a list to append to, found {}", kind(other))),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Value, Value)>) -> Result<(), String> {
        match self.top_node()? {
            Some(Node::Dict(entries) | Node::Object(Object { entries, .. })) => entries.extend(items),
            None => {}
            Some(other) => return Err(format!("expected a dictionary to fill, found {}", kind(other))),
        }
        Ok(())
    }

    fn memo_line(&mut self) -> Result<usize, String> {
        let line = self.input.line()?;
        line.parse().map_err(|_| format!("expected a memo index, found `{}`", line.escape_debug()))
    }

    fn put(&mut self, key: usize) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<(), String> {
        let value = *self.memo.get(&key).ok_or_else(|| format!("expected memo entry {key}, found none"))?;
        self.push(value);
        Ok(())
    }

    /// Python would call `callee` here. We know what the few functions on the allow-list mean and treat everything else as an object.
    fn reduce(&mut self, callee: Value, arguments: Value) -> Result<(), String> {
        let global = match self.heap.get(callee) {
            Some(Node::Global(global)) => *global,
            _ => Global::Unknown,
        };
        let items = self.heap.tuple(arguments).unwrap_or_default();
        // `_rebuild_from_type_v2(function, type, arguments, state)` calls one of the other two.
        let (global, items) = match (global, items) {
            (Global::RebuildFromType, [function, _, arguments, ..]) => match self.heap.get(*function) {
                Some(Node::Global(function)) => (*function, self.heap.tuple(*arguments).unwrap_or_default()),
                _ => (Global::Unknown, items),
            },
            other => other,
        };
        let node = match global {
            Global::OrderedDict => {
                let pairs = items.first().copied();
                Node::Dict(pairs.map_or(Ok(Vec::new()), |pairs| self.listed_entries(pairs))?)
            }
            Global::RebuildTensor => Node::Tensor(self.tensor_view(items)?),
            Global::RebuildParameter => {
                let tensor = *items.first().ok_or("expected a tensor inside the parameter, found nothing")?;
                self.push(tensor);
                return Ok(());
            }
            Global::RebuildOther => return Err("a tensor: expected a plain one; hint: make sparse or quantised tensors dense before importing them".into()),
            Global::RebuildFromType | Global::StorageType(_) | Global::Unknown => Node::Object(Object::default()),
        };
        self.push_node(node);
        Ok(())
    }

    /// `OrderedDict([[key, value], ...])`, as Python 2 pickled it. What is no list (the factory of a `defaultdict`) gives no entries.
    fn listed_entries(&mut self, pairs: Value) -> Result<Vec<(Value, Value)>, String> {
        let Some(Node::List(pairs)) = self.heap.get(pairs) else { return Ok(Vec::new()) };
        // One list can be given to any number of dictionaries.
        self.copied += pairs.len();
        if self.copied > OPERATION_LIMIT {
            return Err(format!("expected at most {OPERATION_LIMIT} entries of dictionaries, found more"));
        }
        let entry = |pair: &Value| match self.heap.get(*pair) {
            Some(Node::List(items) | Node::Tuple(items)) => <[Value; 2]>::try_from(items.as_slice()).ok().map(|[key, value]| (key, value)),
            _ => None,
        };
        pairs.iter().map(|pair| entry(pair).ok_or_else(|| "expected pairs of key and value in a dictionary".to_string())).collect()
    }

    fn tensor_view(&self, items: &[Value]) -> Result<TensorView, String> {
        let [storage, Value::Integer(offset), shape, strides, ..] = items else {
            return Err("a tensor: expected (storage, offset, size, stride)".into());
        };
        let Some(Node::Storage(storage)) = self.heap.get(*storage) else {
            return Err("a tensor: expected a storage of a known number format".into());
        };
        let sizes = |value: Value, what: &str| -> Result<Vec<usize>, String> {
            let items = self.heap.tuple(value).ok_or_else(|| format!("a tensor: expected a tuple of {what}"))?;
            if items.len() > AXIS_LIMIT {
                return Err(format!("a tensor: expected at most {AXIS_LIMIT} axes, found {}", items.len()));
            }
            let size = |item: &Value| match item {
                Value::Integer(size) => usize::try_from(*size).ok(),
                Value::Other | Value::Node(_) => None,
            };
            items.iter().map(|item| size(item).ok_or_else(|| format!("a tensor: expected whole numbers of at least 0 as {what}"))).collect()
        };
        let (shape, strides) = (sizes(*shape, "sizes")?, sizes(*strides, "strides")?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor: expected as many strides as sizes, found {} and {}", strides.len(), shape.len()));
        }
        let offset = usize::try_from(*offset).map_err(|_| "a tensor: expected an offset of at least 0".to_string())?;
        let offset = offset.checked_add(storage.offset).ok_or("a tensor: expected an offset within this machine's memory")?;
        Ok(TensorView { storage: storage.clone(), offset, shape, strides })
    }

    /// `object.__setstate__(state)` or `object.__dict__.update(state)`: the attributes of an unknown object become its entries.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        // A dictionary's own attributes (PyTorch's `_metadata`) hold no weights.
        if let Some(Node::Object(object)) = self.top_node()? {
            object.states.push(state);
        }
        Ok(())
    }

    /// PyTorch's persistent identities: storages, ("storage", type, key, location, count), in the older format also with None or the (key, offset, count) of a
    /// part of the storage; and, in the older format, classes with their source text, ("module", class, file, text).
    fn persistent(&mut self, identity: Value) -> Result<(), String> {
        let items = self.heap.tuple(identity).unwrap_or_default();
        let [tag, kind, key, rest @ ..] = items else {
            return Err("expected the identity of a storage".into());
        };
        if self.heap.text(*tag) == Some("module") {
            let class = *kind;
            self.push(class);
            return Ok(());
        }
        let (Some("storage"), Some(key)) = (self.heap.text(*tag), self.heap.text(*key)) else {
            return Err("expected the identity of a storage".into());
        };
        let offset = match rest.get(2).and_then(|part| self.heap.tuple(*part)) {
            None => 0,
            Some([_, Value::Integer(offset), _]) if *offset >= 0 => *offset as usize,
            Some(_) => return Err("a storage: expected (key, offset, count) as its part".into()),
        };
        if key.len() > STORAGE_KEY_LIMIT {
            return Err(format!("a storage: expected a key of at most {STORAGE_KEY_LIMIT} bytes, found {}", key.len()));
        }
        let format = match self.heap.get(*kind) {
            Some(Node::Global(Global::StorageType(format))) => *format,
            _ => return Err(
                "a storage: expected numbers as f64, f32, f16, bf16, integers or booleans; hint: convert quantised or complex weights before importing them"
                    .into(),
            ),
        };
        let storage = Storage { key: key.to_string(), format, offset };
        self.push_node(Node::Storage(storage));
        Ok(())
    }
}

fn pairs(items: Vec<Value>) -> Result<Vec<(Value, Value)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("expected a value for every key".into());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::Text(_) => "text",
        Node::Global(_) => "a class or function",
        Node::Tuple(_) => "a tuple",
        Node::List(_) => "a list",
        Node::Dict(_) => "a dictionary",
        Node::Object(_) => "an object",
        Node::Storage(_) => "a storage",
        Node::Tensor(_) => "a tensor",
    }
}
