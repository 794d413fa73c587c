"""Operations on plain arrays that several aggregators share, and the parameters they read."""
