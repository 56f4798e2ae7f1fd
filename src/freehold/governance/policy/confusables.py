"""Characters that a reader takes for a Latin letter, a digit or a usual sign."""

from __future__ import annotations

# Each line: what it looks like, then the characters, as code points. Capitals and small letters stay apart, since
# tokens tell them apart. Forms that Unicode itself traces back to a letter (full width, circled, mathematical) and
# letters with strokes and hooks are not listed: see spelling.py.
_LINES = """
A 0391 0410 13aa 15c5 2c80 a4ee 1f110
B 0392 0412 13f4 15f7 2c82 a4d0
C 03f9 0421 13df 2ca4 a4da 216d
D 13a0 15de 15ea a4d3 0500
E 0395 0415 13ac a4f0 2c88
F 03dc 15b4 a4dd
G 050c 13c0 a4d6
H 0397 041d 13bb 157c 2c8e a4e7
I 0399 0406 04c0 2c92 a4f2 0196
J 037f 0408 13ab 148d a4d9
K 039a 041a 13e6 2c94 a4d7
L 13de 14aa a4e1 053c
M 039c 041c 13b7 15f0 2c98 a4df
N 039d 2c9a a4e0
O 039f 041e 0555 2c9e a4f3 10404 0472 04e8
P 03a1 0420 13e2 146d 2ca2 a4d1
Q 051a
R 13a1 13d2 1587 a4e3
S 0405 054f 13d5 13da a4e2
T 03a4 0422 13a2 2ca6 a4d4
U 054d 144c a4f4
V 0474 13d9 142f a4e6
W 051c 13b3 13d4 a4ea
X 03a7 0425 166d 2cac a4eb
Y 03a5 0423 04ae 13bd 2ca8 a4ec
Z 0396 13c3 a4dc
a 03b1 0430 0251 237a
b 03b2 03d0 0432 044c 13cf 0184
c 03f2 0441 2ca5 03c2 1d04
d 0501 13e7
e 03b5 0435 04bd 212e
f 0192
g 0261 0581 018d
h 043d 04bb 0570 13c2
i 0131 0269 03b9 0456 13a5 0582
j 0237 0458 03f3 0575
k 03ba 043a
l 04cf 0562 01c0 2223 05c0 056c
m 043c
n 03b7 043f 0578 057c 0580
o 03bf 03c3 043e 0585 05e1 0647 10ff 1042c 2c9f 0473 04e9 101d
p 03c1 0440 2ca3 03f1
q 051b 0563 0566
r 0433 1d26
s 0455 a731 10448
t 03c4 0442
u 03c5 057d 028b 1d1c 03bc
v 03bd 0475 2228
w 03c9 0461 051d 0561
x 03c7 0445 00d7
y 03b3 0443 04af 10e7 0263 13a9
z 0290
2 01a7 01a8 03e8 a644
3 0417 0437 01b7 04e0 021c
4 13ce
5 01bc
6 0431 13ee
8 0222 0223
/ 2215 2044 29f8 2571 27cb 1735 2cc6
\\ 2216 29f5 29f9 244a
: 2236 a789 05c3 02d0 0589 0703
. 00b7 2022 2027 22c5 30fb 0387 2219 3002 06d4
, 060c 3001 201a 066b
- 2212 2043 02d7 2500 2796
"""


def _read() -> dict[int, str]:
    table = {}
    for line in _LINES.strip().splitlines():
        twin, *codes = line.split(" ")
        for code in codes:
            table[int(code, 16)] = twin
    # Cherokee's small letters have the forms of its capitals.
    small = {code - 0x13A0 + 0xAB70: twin for code, twin in table.items() if 0x13A0 <= code <= 0x13EF}
    return {**small, **table}


CONFUSABLES = _read()
"""Code point -> what it looks like."""
