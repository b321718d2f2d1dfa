"""The one exception of pktring: a stable code, what is wrong, and what to do about it."""


class Error(Exception):
    """Raised for wrong use and for a refusal by the kernel; `.code` is the stable E_ name that scripts test.

    `str(error)` is the line a person reads: "E_CODE what is wrong: what to do".
    """

    def __init__(self, code: str, text: str):
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text
