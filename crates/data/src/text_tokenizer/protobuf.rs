//! The wire format of protocol buffers (protobuf.dev, "Encoding"), as far as reading a message field by field: nothing is believed, nothing is allocated.

/// The fields of one message.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

/// One field's value, by its wire type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Number(u64),
    Eight,
    Bytes(&'a [u8]),
    Four([u8; 4]),
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and value, or nothing at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                self.take(8)?;
                Value::Eight
            }
            2 => {
                let length = self.number()?;
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => Value::Four(self.take(4)?.try_into().expect("four bytes were taken")),
            other => return Err(format!("expected a protocol-buffer message, found wire type {other}")),
        };
        match tag >> 3 {
            0 => Err("expected a protocol-buffer message, found field number 0".into()),
            number => Ok(Some((number, value))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| format!("expected {length} more bytes, found {}", self.rest.len()))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Seven bits a byte, lowest first; the eighth says that more follow.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for place in 0..10 {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("expected a number of at most 10 bytes, found a longer one".into())
    }
}

impl<'a> Value<'a> {
    pub(super) fn number(&self, key: &str) -> Result<u64, String> {
        if let Self::Number(number) = self { Ok(*number) } else { Err(format!("{key}: expected a number")) }
    }

    pub(super) fn bytes(&self, key: &str) -> Result<&'a [u8], String> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(format!("{key}: expected bytes")) }
    }

    pub(super) fn float(&self, key: &str) -> Result<f32, String> {
        if let Self::Four(bytes) = self { Ok(f32::from_le_bytes(*bytes)) } else { Err(format!("{key}: expected a floating-point number")) }
    }
}
