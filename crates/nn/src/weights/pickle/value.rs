//! What a pickle can build here: plain data, descriptions of tensors, and opaque objects. Nothing is ever called.

/// A value on the stack, in the memo or in a container. Everything larger than a number is in the [`Heap`], so that copies are cheap, cycles are harmless
/// and dropping never recurses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// None, floats, sets, numbers beyond 64 bits: nothing that a tensor or its name is made of.
    Other,
    Integer(i64),
    Node(Index),
}

/// Place of a node in the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Index(u32);

impl Index {
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug)]
pub enum Node {
    Text(String),
    /// A function or class, by what it means to us.
    Global(Global),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    /// Later entries with the same key win, as in Python.
    Dict(Vec<(Value, Value)>),
    /// An instance of a class that we do not know.
    Object(Object),
    Storage(Storage),
    Tensor(TensorView),
}

#[derive(Clone, Debug, Default)]
pub struct Object {
    /// Where the class is a kind of dictionary.
    pub entries: Vec<(Value, Value)>,
    /// Dictionaries of attributes, as BUILD gave them. Kept as references: copies of one large dictionary could fill the memory.
    pub states: Vec<Value>,
}

/// The allow-list. Everything else is [`Global::Unknown`] and its instances are [`Node::Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: (storage, offset, size, stride, ...).
    RebuildTensor,
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`: (tensor, ...).
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: (function, type, arguments, state).
    RebuildFromType,
    StorageType(Format),
    /// Tensors that cannot be weights here (sparse, quantised, on other devices).
    RebuildOther,
    Unknown,
}

impl Global {
    pub fn named(module: &str, name: &str) -> Self {
        match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch._utils", name) if name.starts_with("_rebuild_") => Self::RebuildOther,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch" | "torch.cuda" | "torch.storage", _) => Format::of_storage(name).map_or(Self::Unknown, Self::StorageType),
            _ => Self::Unknown,
        }
    }
}

/// Number formats of PyTorch's typed storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F64,
    F32,
    F16,
    Bf16,
    /// Integers and booleans: never weights.
    Integer {
        name: &'static str,
        byte_count: usize,
    },
}

impl Format {
    fn of_storage(name: &str) -> Option<Self> {
        let integer = |name, byte_count| Self::Integer { name, byte_count };
        Some(match name {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => integer("i64", 8),
            "IntStorage" => integer("i32", 4),
            "ShortStorage" => integer("i16", 2),
            "CharStorage" => integer("i8", 1),
            "ByteStorage" => integer("u8", 1),
            "BoolStorage" => integer("bool", 1),
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Integer { name, .. } => name,
        }
    }

    pub fn byte_count(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Integer { byte_count, .. } => byte_count,
        }
    }

    pub fn is_integer(self) -> bool {
        matches!(self, Self::Integer { .. })
    }
}

/// The raw numbers behind one or several tensors: an entry `data/<key>` of the archive, or a block at the end of the older format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub key: String,
    pub format: Format,
    /// Numbers before the part that is meant; 0 but in some files of the older format.
    pub offset: usize,
}

/// Element (i, j, ...) of the tensor is number `offset + i * strides[0] + j * strides[1] + ...` of the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl TensorView {
    /// Are the elements neighbours in the storage, in row-major order? Strides of axes of size one do not matter.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}

/// All nodes of one pickle.
#[derive(Debug, Default)]
pub struct Heap {
    nodes: Vec<Node>,
}

impl Heap {
    pub fn insert(&mut self, node: Node) -> Value {
        // The machine's limit on operations keeps the count far below u32's end.
        let index = u32::try_from(self.nodes.len()).expect("fewer nodes than operations");
        self.nodes.push(node);
        Value::Node(Index(index))
    }

    pub fn node(&self, index: Index) -> &Node {
        &self.nodes[index.position()]
    }

    pub fn node_mut(&mut self, index: Index) -> &mut Node {
        &mut self.nodes[index.position()]
    }

    /// Every node with its place.
    pub fn iter(&self) -> impl Iterator<Item = (Index, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (Index(index as u32), node))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node behind a value; None for numbers and the like.
    pub fn get(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => Some(self.node(index)),
            Value::Other | Value::Integer(_) => None,
        }
    }

    pub fn text(&self, value: Value) -> Option<&str> {
        match self.get(value) {
            Some(Node::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn tuple(&self, value: Value) -> Option<&[Value]> {
        match self.get(value) {
            Some(Node::Tuple(items)) => Some(items),
            _ => None,
        }
    }
}
