//! Whom a process becomes.

use std::fmt;
use std::str::FromStr;

/// A user and a group, as numbers: names would need files that a container may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
}

/// What is no user and group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no user: give numbers up to 4294967294, as in 1000:1000, or 1000 for both \
     (`id -u NAME` and `id -g NAME` tell them)"
)]
pub struct NoUser(String);

impl FromStr for User {
    type Err = NoUser;

    fn from_str(word: &str) -> Result<Self, NoUser> {
        let (uid, gid) = word.split_once(':').unwrap_or((word, word));
        let number = |digits: &str| {
            // A sign is no digit, though u32 would take one. The last number means "leave it as it
            // is" (setresuid(2)).
            let digits = digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(digits)?;
            digits.parse().ok().filter(|number| *number != u32::MAX)
        };
        match (number(uid), number(gid)) {
            (Some(uid), Some(gid)) => Ok(User { uid, gid }),
            _ => Err(NoUser(word.to_owned())),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_users() {
        assert_eq!("1000:100".parse(), Ok(User { uid: 1000, gid: 100 }));
        assert_eq!("65534".parse(), Ok(User { uid: 65_534, gid: 65_534 }));
        let user = User { uid: 0, gid: u32::MAX - 1 };
        assert_eq!(user.to_string().parse(), Ok(user));
    }

    #[test]
    fn anything_else_is_named_with_the_remedy() {
        for word in
            ["", ":", "1:", ":1", "nobody", "+1", "-1", "1:2:3", "4294967295", "1:4294967296"]
        {
            let error = word.parse::<User>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{word}' is no user: give numbers")), "{error}");
        }
    }
}
