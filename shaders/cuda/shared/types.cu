// Types and small helpers that every kernel shares. No #include anywhere: NVRTC on a user's machine has no headers.
// `act` is a bf16 (BF16 = 1) or f16 (BF16 = 0) value as 16 bits; arithmetic on it is f32.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct act { u16 bits; };

#define NONE 0xffffffffu                                // u32::MAX: padding of index lists, "no window"
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define INFINITY_F __int_as_float(0x7f800000)

// A number as a type: picks a specialisation of a generic lambda.
template <int N> struct Use { static constexpr int value = N; };

#define DYNAMIC_SMEM extern __shared__ __align__(1024) unsigned char smem[]
// Aligned by hand to the 1024 bytes of a swizzle atom: the declaration above promises it, the hardware does not.
#define DYNAMIC_SMEM_1024 extern __shared__ __align__(1024) unsigned char smem_raw[]; \
    unsigned char* smem = smem_raw + ((1024 - (smem_address(smem_raw) & 1023)) & 1023)
