package resp

import (
	"errors"
	"math/big"
	"strings"
)

func init() {
	register([]command{
		{name: "incrbyfloat", arity: 3, flags: flagFast, keys: [3]int{1, 1, 1}, group: "string", since: "2.6.0", about: "Increment the floating point value of a key by a number. Uses 0 as initial value if the key doesn't exist.", check: checkIncrByFloat, decide: decideIncrByFloat},
	})
}

// Redis computes in long double, which on x86 is the 80-bit format with 64 bits of mantissa. Results are compared and stored as text, so
// the same arithmetic is done here, on every machine.
const (
	mantissaBits = 64
	maxExponent  = 16384 // of a mantissa in [1/2, 1)
	maxFloatText = 5 << 10
)

const (
	errNotFloat = "ERR value is not a valid float"
	errNotANum  = "ERR increment would produce NaN or Infinity"
)

// parseFloat reads a number as C's strtold does, and refuses what Redis refuses: blanks, NaN, what is too large or vanishes.
func parseFloat(text []byte) (*big.Float, bool) {
	if len(text) == 0 || len(text) >= maxFloatText {
		return nil, false
	}
	s := strings.ToLower(string(text))
	negative := s[0] == '-'
	if s[0] == '-' || s[0] == '+' {
		s = s[1:]
	}
	f := new(big.Float).SetPrec(mantissaBits)
	switch {
	case s == "inf" || s == "infinity":
		f.SetInf(negative)
		return f, true
	case strings.HasPrefix(s, "0x"):
		if !setHex(f, s[2:]) {
			return nil, false
		}
	default:
		if !setDecimal(f, s) {
			return nil, false
		}
	}
	if negative {
		f.Neg(f)
	}
	return f, true
}

// digitsOf takes mantissa and exponent of a number apart. scale is the number of digits behind the point; exponents
// beyond all that a long double holds are cut to where they stay so.
func digitsOf(s, digits string, mark byte) (mantissa string, scale, exponent int, ok bool) {
	whole, rest, hasExponent := strings.Cut(s, string(mark))
	if hasExponent {
		sign, e := 1, rest
		if e != "" && (e[0] == '-' || e[0] == '+') {
			if e[0] == '-' {
				sign = -1
			}
			e = e[1:]
		}
		if e == "" || strings.Trim(e, "0123456789") != "" {
			return "", 0, 0, false
		}
		for _, d := range e {
			exponent = min(exponent*10+int(d-'0'), 1<<20)
		}
		exponent *= sign
	}
	before, after, _ := strings.Cut(whole, ".")
	mantissa = before + after
	if mantissa == "" || strings.Trim(mantissa, digits) != "" {
		return "", 0, 0, false
	}
	return mantissa, len(after), exponent, true
}

// setDecimal sets f to the nearest number; false when there is none, or it is out of range.
func setDecimal(f *big.Float, s string) bool {
	mantissa, scale, exponent, ok := digitsOf(s, "0123456789", 'e')
	if !ok {
		return false
	}
	mantissa = strings.TrimLeft(mantissa, "0")
	if mantissa == "" {
		return true
	}
	exponent -= scale
	if magnitude := len(mantissa) + exponent; magnitude > 4940 || magnitude < -4970 {
		return false
	}
	n, _ := new(big.Int).SetString(mantissa, 10)
	ten := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exponent, -exponent))), nil)
	if exponent >= 0 {
		return inRange(f, new(big.Rat).SetInt(n.Mul(n, ten)))
	}
	return inRange(f, new(big.Rat).SetFrac(n, ten))
}

func setHex(f *big.Float, s string) bool {
	mantissa, scale, exponent, ok := digitsOf(s, "0123456789abcdef", 'p')
	if !ok {
		return false
	}
	mantissa = strings.TrimLeft(mantissa, "0")
	if mantissa == "" {
		return true
	}
	exponent -= 4 * scale
	if magnitude := 4*len(mantissa) + exponent; magnitude > 16500 || magnitude < -16600 {
		return false
	}
	n, _ := new(big.Int).SetString(mantissa, 16)
	two := new(big.Int).Lsh(big.NewInt(1), uint(max(exponent, -exponent)))
	if exponent >= 0 {
		return inRange(f, new(big.Rat).SetInt(n.Mul(n, two)))
	}
	return inRange(f, new(big.Rat).SetFrac(n, two))
}

// vanishing is half the smallest number of the format: what is not above it rounds to zero.
var vanishing = new(big.Float).SetMantExp(big.NewFloat(1), -16446)

// inRange rounds r to the nearest number of the format; false when that is infinite or zero. (That numbers near zero have fewer
// bits makes no difference 17 digits behind the point.)
func inRange(f *big.Float, r *big.Rat) bool {
	f.SetRat(r)
	round(f)
	return f.Cmp(vanishing) > 0 && !f.IsInf()
}

// round makes f infinite if it is too large for the format.
func round(f *big.Float) {
	if !f.IsInf() && f.MantExp(nil) > maxExponent {
		f.SetInf(f.Signbit())
	}
}

// formatFloat writes f as Redis does for people: 17 digits behind the point, without the zeros at their end.
func formatFloat(f *big.Float) []byte {
	text := f.Append(nil, 'f', 17)
	for text[len(text)-1] == '0' {
		text = text[:len(text)-1]
	}
	if text[len(text)-1] == '.' {
		text = text[:len(text)-1]
	}
	if string(text) == "-0" {
		return text[1:]
	}
	return text
}

func checkIncrByFloat(s *Server, args [][]byte) (bool, string) { return true, s.tooLarge(args[1], nil) }

func decideIncrByFloat(tx Tx, w *writer, args [][]byte) error {
	old := new(big.Float).SetPrec(mantissaBits)
	var expiry int64
	number := true
	err := tx.Entry(args[1], func(value []byte, e int64) error {
		expiry = e
		old, number = parseFloat(value)
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	delta, ok := parseFloat(args[2])
	if !ok || !number {
		w.error(errNotFloat)
		return nil
	}
	if old.IsInf() || delta.IsInf() {
		w.error(errNotANum)
		return nil
	}
	sum := new(big.Float).SetPrec(mantissaBits).Add(old, delta)
	if round(sum); sum.IsInf() {
		w.error(errNotANum)
		return nil
	}
	text := formatFloat(sum)
	w.bulk(text)
	return tx.Put(args[1], text, expiry)
}
