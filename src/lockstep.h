/* Lockstep: run x86-64 machine code in the calling thread, or in a traced child, look inside while it runs,
 * and know how it ended.
 *
 * The words used here (program, code image, sandbox, state, stop, executor, controller) are explained in
 * docs/GLOSSARY.md; how it works inside is in docs/INTERNALS.md.
 *
 * Rules that hold for every function of this header:
 *   - Nothing is printed and the process is never ended. A function that can fail returns an ls_status; if
 *     its last argument is an ls_error, a non-NULL one receives, where it fails, the status again, errno, the
 *     index of the offending item, and a sentence that says what to do; where it does not, it is left alone.
 *   - Pointers are borrowed for the length of the call unless the text says otherwise.
 *   - A pointer must not be NULL, nor be aligned worse than its type, but where the text says so. Functions
 *     of executors and controllers look: LS_ERR_ARGUMENT, or NULL or 0 of those that return no status.
 *   - No function may be called from a signal handler unless its text says so.
 *   - A shared library into which this one is linked stays loaded from the first ls_executor_create on:
 * dlclose leaves it where it is, since handlers, threads that end and fork call into it.
 *   - Objects are not locked: one object is used by one thread at a time. Different objects are independent,
 *     in different threads too. Controllers are the exception: any number of threads may use one at once. */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LS_VERSION_MAJOR 0
#define LS_VERSION_MINOR 1

/* ---- Status and errors ------------------------------------------------------------------------------- */

typedef enum ls_status {
  LS_OK = 0,
  LS_ERR_ARGUMENT,     /* an argument is out of its documented range */
  LS_ERR_MEMORY,       /* the system has no memory or no descriptors left */
  LS_ERR_ADDRESS,      /* a guest address range is in use or cannot be mapped */
  LS_ERR_PROGRAM,      /* a program that cannot be laid out */
  LS_ERR_STATE,        /* a state that the CPU refuses to load */
  LS_ERR_CPU,          /* this CPU or kernel lacks what was asked for */
  LS_ERR_HANDLER,      /* a signal handler could not be put in place */
  LS_ERR_NO_REFERENCE, /* tracing is not possible here */
  LS_ERR_CHILD,        /* the reference child was lost; the next run makes a new one */
  LS_ERR_SYSTEM,       /* another system call failed; errno is in the ls_error */
  LS_ERR_IDLE,         /* (controller) no guest is running: the request came too late, or too early */
  LS_ERR_BUSY,         /* (controller) a guest is running already, or the call came from inside a visitor */
  LS_ERR_SUPERSEDED,   /* (controller) a later request of another caller took its place */
  LS_ERR_COPY          /* another copy of this library has this process's signals */
} ls_status;

/* The name of a status as it stands above ("LS_OK"); for any other value "LS_UNKNOWN". Static storage.
 * Signal safe. */
const char *ls_status_name(ls_status status);

#define LS_NONE UINT32_MAX /* "no instruction", "no index" */

typedef struct ls_error {
  ls_status status;
  int sys_errno;  /* errno of the failing system call, or 0 */
  uint32_t index; /* of the instruction or window at fault, or LS_NONE */
  char text[236]; /* one English sentence, no newline, always terminated */
} ls_error;

/* ---- State: the register file ------------------------------------------------------------------------ */

/* General registers in the order in which instructions encode them (SDM vol. 2, table 2-2). */
enum {
  LS_RAX,
  LS_RCX,
  LS_RDX,
  LS_RBX,
  LS_RSP,
  LS_RBP,
  LS_RSI,
  LS_RDI,
  LS_R8,
  LS_R9,
  LS_R10,
  LS_R11,
  LS_R12,
  LS_R13,
  LS_R14,
  LS_R15
};

/* Everything a user program can see of a CPU, without FS and GS bases. A flat POD without padding: two
 * canonical states (ls_state_canonicalise) are equal exactly when memcmp says so. XMMn and YMMn are the low
 * 16 and 32 bytes of zmm[n]. The part from fcw to st has the layout of FXSAVE's first 160 bytes (SDM
 * vol. 1, 10.5.1): ftw is the abridged tag word, one bit per physical register, 1 = in use; of each st slot
 * the first ten bytes are the value. */
typedef struct ls_state {
  uint8_t zmm[32][64];
  uint64_t k[8];
  uint64_t gpr[16];
  uint64_t rip;
  uint64_t rflags;
  uint16_t cs, ss, ds, es, fs, gs;
  uint32_t reserved0;
  uint16_t fcw, fsw;
  uint8_t ftw, reserved1;
  uint16_t fop;
  uint64_t fip, fdp;
  uint32_t mxcsr;
  uint32_t reserved2;
  uint8_t st[8][16];
}
#if defined(__GNUC__)
__attribute__((aligned(64)))
#endif
ls_state;

/* How wide the vector registers are that an executor loads and stores. What a mode does not cover (upper
 * parts, ZMM16-31, opmasks) is not loaded, and the outcome repeats the start's, however the run ended; a
 * program that uses it anyway finds there what happens to be there. */
typedef enum ls_vectors {
  LS_VECTORS_AUTO = 0, /* the widest that this CPU and kernel have */
  LS_VECTORS_SSE,      /* XMM0-15 */
  LS_VECTORS_AVX,      /* YMM0-15 */
  LS_VECTORS_AVX512    /* ZMM0-31, k0-7 */
} ls_vectors;

/* The widest vectors that CPU and kernel (XCR0) have: never LS_VECTORS_AUTO. Thread safe. */
ls_vectors ls_vectors_available(void);

/* "SSE", "AVX", "AVX-512" or "auto". */
const char *ls_vectors_name(ls_vectors vectors);

/* What ls_state_canonicalise does to a register. */
typedef enum ls_rule {
  LS_RULE_MASK,       /* bits outside of `mask` become 0 */
  LS_RULE_SELECTOR,   /* a null selector, 0 to 3, becomes 0 */
  LS_RULE_X87_PENDING /* it becomes 0 unless an x87 exception is pending: FSW.ES, bit 7 */
} ls_rule;

/* One row of the register table (src/regs.def), which drives names, printing, comparing and the canonical
 * form. */
typedef struct ls_register {
  const char *name;   /* lower case, as Intel writes it: "rax", "zmm7", "st0", "mxcsr" */
  uint16_t offset;    /* in ls_state */
  uint16_t size;      /* bytes of value */
  uint8_t group;      /* an ls_register_group */
  uint8_t rule;       /* an ls_rule */
  uint16_t reserved;  /* 0 */
  uint32_t reserved2; /* 0 */
  uint64_t mask;      /* LS_RULE_MASK: the bits that are compared; all, where it has more than 8 bytes or the
                         rule is another one */
  const char *reason; /* why not all of it is always compared; NULL: all is */
} ls_register;

typedef enum ls_register_group {
  LS_GROUP_GPR,
  LS_GROUP_RIP,
  LS_GROUP_FLAGS,
  LS_GROUP_SEGMENT,
  LS_GROUP_X87,
  LS_GROUP_MXCSR,
  LS_GROUP_VECTOR,
  LS_GROUP_OPMASK
} ls_register_group;

/* The whole table, *count rows, static storage. Thread and signal safe. */
const ls_register *ls_registers(size_t *count);

/* The row of that name (case as in the table), or NULL. */
const ls_register *ls_register_find(const char *name);

/* A state in which a run can start: all zero but FCW 0x37f, MXCSR 0x1f80, RFLAGS 0x202, CS 0x33, SS 0x2b
 * (what Linux gives a 64-bit program). */
void ls_state_init(ls_state *state);

/* Resets what two runs of the same program may differ in although the program did the same, as the rules of
 * the register table say, and bytes that belong to no register, so that equality is memcmp. */
void ls_state_canonicalise(ls_state *state);

/* Writes register `reg` of `state` as text: 0x… for 8 bytes and less, lanes of 8 bytes, highest first,
 * separated by '_' for more. Returns the length without the terminator; never writes more than `size`
 * bytes, terminator included. */
size_t ls_register_print(const ls_register *reg, const ls_state *state, char *text, size_t size);

/* Finds the first register at or after table row `*row` that differs between two canonical states. Returns
 * 1 and its row in *row, or 0 when there is no further one. */
int ls_state_difference(const ls_state *a, const ls_state *b, size_t *row);

/* ---- Programs and code images ------------------------------------------------------------------------ */

typedef enum ls_field {
  LS_FIELD_NONE = 0,
  LS_FIELD_BRANCH, /* a displacement relative to the next instruction, filled in from `jump` */
  LS_FIELD_DATA    /* a RIP-relative displacement, filled in so that it refers to the address `data` */
} ls_field;

enum {
  LS_INSTRUCTION_MAX = 15,   /* bytes; SDM vol. 2, 2.3.11 */
  LS_NEVER_FALLS_THROUGH = 1 /* flag: what follows it in memory is never executed (jmp, ret, ud2) */
};

/* One instruction and where control goes after it. */
typedef struct ls_instruction {
  uint64_t id;    /* the caller's own, stable name for it */
  uint64_t data;  /* with LS_FIELD_DATA: the guest address referred to */
  uint32_t next;  /* index of the instruction that follows, or LS_NONE: leaves the program */
  uint32_t jump;  /* with LS_FIELD_BRANCH: index of the branch's target, or LS_NONE: leaves the program; else
                     LS_NONE or 0 */
  uint8_t length; /* of bytes, 1 to LS_INSTRUCTION_MAX */
  uint8_t flags;
  uint8_t field;                     /* an ls_field */
  uint8_t field_offset;              /* in bytes */
  uint8_t field_size;                /* 1 or 4; LS_FIELD_DATA: 4 */
  uint8_t bytes[LS_INSTRUCTION_MAX]; /* machine code; the content of the field does not matter */
} ls_instruction;

/* A program is a graph over instructions[0 … count-1]. */
typedef struct ls_program {
  const ls_instruction *instructions;
  uint32_t count; /* 1 to LS_PROGRAM_MAX */
  uint32_t flags; /* LS_PROGRAM_FUEL */
} ls_program;

enum {
  LS_PROGRAM_MAX = 65536,
  /* Every link to an instruction at a lower or the same address costs a unit of fuel, and so does every
   * indirect branch (JMP and CALL through a register or memory, RET, IRET) before it is executed. */
  LS_PROGRAM_FUEL = 1
};

typedef enum ls_part {
  LS_PART_BODY,  /* the instruction itself */
  LS_PART_NEXT,  /* what was inserted to follow its next link: a jump, or an exit point */
  LS_PART_JUMP,  /* the same for its jump link */
  LS_PART_BEFORE /* what was inserted before it: the fuel counter of an indirect branch */
} ls_part;

/* One range of a code image. Ranges are sorted, do not overlap, and cover the image but for the slot
 * behind its last instruction through which exit points jump. */
typedef struct ls_range {
  uint32_t offset, length; /* bytes from the start of the image */
  uint32_t instruction;    /* index into the program */
  ls_part part;
} ls_range;

struct ls_layout;
typedef struct ls_image ls_image; /* a program laid out as bytes for one layout, and its code map */

/* Makes an empty image; NULL when there is no memory. The caller destroys it. */
ls_image *ls_image_create(void);
void ls_image_destroy(ls_image *image); /* NULL is fine */

/* Lays `program` out for the code window of `layout`, in time linear in its size. The image is replaced; on
 * failure it keeps what it held. Branches whose 8-bit field does not reach get an island. Refused, with the
 * index of the instruction (LS_ERR_PROGRAM): links out of range, a jump link other than 0 without a branch
 * field, a branch field without a known width, fields outside the bytes, targets of data fields out of reach,
 * programs larger than the code window. */
ls_status ls_image_build(ls_image *image, const ls_program *program, const struct ls_layout *layout,
                         ls_error *error);

/* The bytes, *size of them, to be placed at the start of the layout's code window. Valid until the next
 * build or destroy. */
const uint8_t *ls_image_bytes(const ls_image *image, size_t *size);

/* The guest address of instruction `index` itself, behind what was inserted before it, or 0 if there is none
 * of that index. */
uint64_t ls_image_address(const ls_image *image, uint32_t index);

/* The range that holds guest address `address` (binary search), or NULL. Valid until the next build. */
const ls_range *ls_image_find(const ls_image *image, uint64_t address);

/* The code map, *count ranges. Valid until the next build. */
const ls_range *ls_image_map(const ls_image *image, size_t *count);

/* ---- Sandbox: the guest's memory --------------------------------------------------------------------- */

enum { LS_READ = 1, LS_WRITE = 2, LS_EXEC = 4 };

enum {
  LS_CODE_WINDOW = 0, /* windows[0] holds the code: LS_READ | LS_EXEC */
  LS_WINDOWS_MAX = 16,
  LS_PAGE = 4096,
  LS_CONTROL_SIZE = 64,  /* bytes at `control` */
  LS_GATE_SIZE = 0x10000 /* bytes reserved at `gate` */
};

typedef struct ls_window {
  uint64_t address; /* of the guest; a multiple of LS_PAGE */
  uint64_t size;    /* bytes; a multiple of LS_PAGE, not 0 */
  uint32_t access;  /* LS_READ, LS_WRITE, LS_EXEC */
  uint32_t reserved;
} ls_window;

/* Where guest memory lies. Each window has an inaccessible guard page on either side unless another window
 * begins there. Windows of up to 4 MiB are in memory as a whole; of larger ones every page is once it is
 * touched, through a view of the host's too, and until ls_executor_reset makes it zero. Exit points and fuel
 * write LS_CONTROL_SIZE bytes at `control`; the guest may see and change them, the same way in every
 * executor. `gate` is where guest code jumps to leave: LS_GATE_SIZE bytes are reserved there and at gate XOR
 * 0x1000000000; what they hold is the executor's own business, the same in every executor at `gate` itself.
 *
 * Whoever has windows of their own chooses
 *   - windows[0], the code, LS_READ | LS_EXEC; all windows disjoint, in 0x1000 to 0x7fffffffe000;
 *   - `control`, a multiple of LS_CONTROL_SIZE, in a window with LS_WRITE, no further than 0x7fff0000
 *     (2 GiB less 64 KiB) from either end of the code window: best in a page of its own near the code;
 *   - `gate`, a multiple of LS_GATE_SIZE, so that what is reserved there and at gate XOR 0x1000000000 lies in
 *     0x10000 to 0x7ffffffff000 and overlaps no window and no guard page: best over 2 GiB from all windows,
 *     where no displacement of the guest's reaches it, and where mmap puts nothing, as that of a default slot
 *     which this process does not use otherwise.
 * For LS_SIGNAL all of it must be free in this process: two layouts in use at once overlap nowhere. For
 * LS_PTRACE any addresses will do, in any number of executors at once. Neither can have what vm.mmap_min_addr
 * keeps free, mostly 64 KiB. ls_executor_create says which rule is broken.
 *
 * In a process built with AddressSanitizer, 0x7fff8000 to 0x10007fff8000 is its shadow: an in-thread sandbox
 * there is refused with LS_ERR_ADDRESS. */
typedef struct ls_layout {
  ls_window windows[LS_WINDOWS_MAX];
  uint32_t window_count;
  uint32_t reserved;
  uint64_t control;
  uint64_t gate;
} ls_layout;

enum { LS_LAYOUT_SLOTS = 256 };

/* Lockstep's own layout: code (64 KiB), data (8 KiB, read-write), constants (4 KiB, read only), stack
 * (4 KiB), control (4 KiB). Slots 0 … LS_LAYOUT_SLOTS-1 are disjoint, so that several sandboxes coexist in a
 * process; the addresses of a slot never change between versions, lie below 2 GiB, and are free beside the
 * shadow memory of ASan, TSan and MSan. */
void ls_layout_default(ls_layout *layout, unsigned slot);

/* ---- Executors --------------------------------------------------------------------------------------- */

typedef enum ls_kind {
  LS_SIGNAL, /* runs code in the calling thread; faults are caught as signals */
  LS_PTRACE  /* the reference: runs code in a traced child that holds nothing but the guest's memory */
} ls_kind;

typedef struct ls_options {
  int interrupt_signal; /* LS_SIGNAL: the signal that interrupts the guest; 0 = SIGURG. Best one that the host
                           does not use: the kernel keeps one of each that is pending, so the host's may be
                           lost in the library's (of real-time signals it keeps all) */
  ls_vectors vectors;   /* LS_VECTORS_AUTO, or at most what is available */
  uint32_t tick_ms;     /* resolution of time limits, CPU time; 0 = 10 ms */
  uint32_t flags;       /* LS_WITHOUT_AUTODISARM */
} ls_options;

enum {
  /* LS_SIGNAL: the alternate stack that a thread borrows stays in force inside handlers, as sigaltstack has
   * it without SS_AUTODISARM. Wanted by hosts whose handlers ask for it (Go's runtime ends a process in whose
   * handlers there is none), and by kernels and emulators that do not know SS_AUTODISARM (LS_ERR_SYSTEM of
   * the first run: before Linux 4.7, and in user-mode emulation). What is lost: a guest whose RSP points into
   * that stack (it finds no such address in its registers or windows, but may guess one) is taken for a
   * handler of the host's. What it does goes to the host's handlers, and signals overwrite what is below its
   * RSP. And a handler that leaves by swapcontext, to go on later, is overwritten by the next signal; one
   * that jumps away is not harmed. */
  LS_WITHOUT_AUTODISARM = 1
};

typedef struct ls_executor ls_executor;

/* Makes an executor with zeroed memory for `layout` (copied). `options` may be NULL. LS_ERR_ARGUMENT, with
 * the window's index, for a layout that breaks a rule of ls_layout; LS_ERR_ADDRESS if something has its
 * addresses.
 *
 * LS_SIGNAL: while any such executor exists the process's handlers of SIGSEGV, SIGBUS, SIGILL, SIGFPE,
 * SIGTRAP, SIGSYS and the interrupt signal are the library's; a signal that is not the guest's goes on to the
 * handler that stood there before, and the last destroy puts those back.
 *
 * The host's handlers of all other signals that have SA_ONSTACK when an executor is created, or when a thread
 * runs a guest for the first time, are called through the library's as well, with the mask and the flags that
 * the host set: so on top of a guest they find the host's FS and may make system calls. One that is put in
 * place later must not use TLS on top of a guest that changes FS, nor make system calls with SIGSYS blocked
 * if a window lies between libc and the library. A host that keeps what sigaction says of such a signal puts
 * it back as a whole, flags included.
 *
 * Of several copies of this library in a process (one in the program and one in a plugin, two link
 * namespaces), of whatever versions, one can have such executors at a time: LS_ERR_COPY for the others, until
 * its last is destroyed and all threads that ran one have given back what they borrowed. LS_PTRACE works in
 * all.
 *
 * A thread that runs code borrows an alternate stack, a timer, Syscall User Dispatch, and its signal mask for
 * these signals; ls_thread_release or the thread's end gives them back. At most 1024 threads do so at a time.
 * LS_ERR_SYSTEM, already here, where the system (a seccomp filter) refuses the calling thread a timer or
 * sigaltstack; the text names the call.
 *
 * Until ls_thread_release or the last destroy the host must not take the library's handlers or the borrowed
 * alternate stack away (another handler that calls the one it found is fine, and so is another stack). While
 * a guest runs it must not block these signals (a blocked interrupt signal means no time limit and no answer
 * to requests), let a handler without SA_ONSTACK strike the guest, whose RSP it would use, or leave the guest
 * by a jump out of a handler. After a run the thread's GS base is what it was before that run; without
 * FSGSBASE (AT_HWCAP2), if the guest has loaded FS or GS, what it was when the thread was attached, so that a
 * host that changes it releases the thread (ls_thread_release). An interruption that comes late can end a
 * blocking call of the thread with EINTR, as any signal can. The guest runs in this process: nothing keeps it
 * from the host's memory but its own addresses, nor from what FS and GS point to, nor from instructions that
 * change the thread (WRPKRU, SYSENTER on Intel). Whoever runs code that is not known to be harmless runs it
 * in the reference first, as harness/oracle does.
 *
 * LS_PTRACE: forks a child, which is ended by destroy, by the end of this thread, or by that of the process.
 * The child belongs to the thread that ran it last: a run from another thread, or after that thread has
 * ended, makes a new one (about 2 ms). The kernel sends this process SIGCHLD whenever the child stops: a host
 * that handles that signal should do so with SA_NOCLDSTOP. Meanwhile the host must not wait for any child
 * (wait, waitpid of -1 or of a process group, waitid with P_ALL): it would take stops of the child that a run
 * waits for, which then never ends. It waits for its own children by their ids. LS_ERR_NO_REFERENCE when
 * tracing is not permitted (seccomp, Yama, another tracer); the text names which. LS_ERR_CHILD if the child
 * was killed while it started: try again. */
ls_status ls_executor_create(ls_kind kind, const ls_layout *layout, const ls_options *options,
                             ls_executor **executor, ls_error *error);

/* Ends it and gives back what it borrowed. NULL is fine. */
void ls_executor_destroy(ls_executor *executor);

/* Gives back what the calling thread lent to in-thread executors (alternate stack, timer, signal mask). The
 * next run in this thread borrows anew. Destroying the executor of the last run in this thread does the same.
 */
void ls_thread_release(void);

const ls_layout *ls_executor_layout(const ls_executor *executor); /* valid until destroy */
ls_vectors ls_executor_vectors(const ls_executor *executor);      /* what it loads; never AUTO */

/* This process's own view of window `window`, always readable and writable, of the window's size; or NULL if
 * there is no such window. Valid until destroy. Not to be written while the guest runs. After a fork the
 * child's view becomes its own with the first run or reset. What is written to the code window is executed,
 * but stops are told by the image, which does not know of it; the next load replaces it. */
void *ls_executor_memory(ls_executor *executor, uint32_t window);

/* The same view at guest address `address`, or NULL unless one window holds all of `size` bytes there, at
 * least 1. Nothing can be concluded from it about the host addresses of other windows. */
void *ls_executor_pointer(ls_executor *executor, uint64_t address, uint64_t size);

/* As contents of a window: all zero. */
#define LS_ZERO ((const void *)-1)

/* Sets every window but the code from contents[window], `size` bytes each as the layout says, or to LS_ZERO;
 * a NULL leaves that window as it is. contents[0] is ignored. LS_ZERO of a window over 4 MiB costs what its
 * touched pages cost; of its contents, pages of zeros take no memory. */
ls_status ls_executor_reset(ls_executor *executor, const void *const contents[], ls_error *error);

/* Where the memory of two executors of the same layout first differs at or after *window, *offset: returns 1
 * and the place there, or 0 when there is no further difference. Code is not compared. Of windows over 4 MiB
 * only touched pages are looked at. */
int ls_memory_difference(ls_executor *a, ls_executor *b, uint32_t *window, uint64_t *offset);

/* Puts the image into the code window; the rest of the window is int3 (0xcc), whatever was there. The image
 * must have been built for this executor's layout and stay alive and unchanged while runs use it. Once the
 * host has had a view of the code window every load fills all of it, else only what the image before has
 * used. */
ls_status ls_executor_load(ls_executor *executor, const ls_image *image, ls_error *error);

typedef enum ls_stop_kind {
  LS_STOP_EXIT,    /* left the program over a link */
  LS_STOP_FAULT,   /* a fault or trap; signal, code, address */
  LS_STOP_SYSCALL, /* was about to make a system call, which was not made; number. Of LS_PTRACE a call to the
                      vsyscall page too, which LS_SIGNAL cannot stop: see ls_executor_stops_syscalls */
  LS_STOP_FUEL,    /* out of fuel, on the link `instruction`, `part`, or before an indirect branch */
  LS_STOP_STEPS,   /* executed as many instructions as were asked for */
  LS_STOP_TIMEOUT, /* used up its CPU time */
  LS_STOP_CANCELLED, /* (controller) ls_cancel */
  LS_STOP_GONE,      /* (controller) the instruction it was at is not in the code that replaced its own */
  LS_STOP_KINDS
} ls_stop_kind;

/* "exit", "fault", "syscall", "fuel", "steps", "timeout", "cancelled", "gone". */
const char *ls_stop_kind_name(ls_stop_kind kind);

typedef struct ls_stop {
  ls_stop_kind kind;
  uint32_t instruction; /* where it stopped: index into the program, or LS_NONE (outside the image) */
  ls_part part;
  uint32_t reserved; /* 0 */
  uint64_t id;       /* of that instruction; 0 outside the image. Gone: of the one that is missing */
  int signal;        /* fault: SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGTRAP; else 0 */
  int code;          /* fault: si_code */
  uint64_t address;  /* fault: si_addr, where the signal has one (SIGTRAP of a breakpoint has none), else 0 */
  uint64_t number;   /* syscall: RAX at the call; else 0 */
} ls_stop;

/* What a run can touch beyond what every run loads and stores. */
enum {
  LS_USES_X87 = 1, /* x87 or MMX registers; 100 to 200 ns more in thread */
  /* (outcome of the reference only) it was about the base of FS or GS. A run with steps > 0 tells exactly: it
   * came to an instruction that has an FS or GS prefix, reads or writes a base (RDFSBASE and the like), or
   * loads FS or GS. Other runs cost no more for it, and tell
   *   - a fault of an instruction with such a prefix, or at an address within 4 GiB of where the child's FS
   *     base points, which is nowhere (GS too, unless the base of the thread that runs it is 0, as is usual);
   *   - a base or selector that at the stop is not the start's. Without FSGSBASE in AT_HWCAP2 the kernel does
   *     not know of a base that an instruction wrote: then it is told only of guests that leave at the gate.
   * They do not tell of a base that was only read, or changed and back, of an access that hits a window, and,
   * where the thread's GS base is 0, of one through GS that does not fault. */
  LS_TOUCHED_FS_GS = 2,
  /* (outcome of the reference only) it met the vsyscall page or the inside of the gate */
  LS_TOUCHED_FOREIGN = 4
};

typedef struct ls_run ls_run;

/* Called after every instruction of a stepped run of the reference, before the next: `state` is complete.
 * A return value other than 0 ends the run with LS_STOP_STEPS. Runs in the thread that called run. */
typedef int (*ls_step_visitor)(const ls_state *state, void *context);

struct ls_run {
  const ls_state *state; /* to start from, aligned to 64; rip is not used, cs must be 0x33, fs and gs 0 */
  uint32_t entry;        /* index of the instruction to start at */
  uint32_t uses;     /* LS_USES_X87 or 0. Without it the outcome repeats the x87 state of the start, and code
                        that uses x87 or MMX registers all the same sees and damages the host's */
  uint64_t fuel;     /* units for images built with LS_PROGRAM_FUEL */
  uint32_t limit_ms; /* CPU time after which the run times out, in ticks rounded up; 0 = 1000 */
  uint32_t reserved;
  uint64_t steps;          /* 0 = run; n = stop after n instructions, inserted ones included */
  ls_step_visitor visitor; /* LS_PTRACE with steps > 0; may be NULL */
  void *context;           /* for visitor */
};

typedef struct ls_outcome {
  ls_state state; /* as captured, not canonical. rip: at an exit point or out of fuel its address */
  ls_stop stop;
  uint32_t touched; /* reference: LS_USES_X87 if x87 state is not as at the start, LS_TOUCHED_… */
  uint32_t reserved;
} ls_outcome;

/* Runs the loaded image and waits for its stop. Memory is left as the guest left it. A fault of the guest is
 * an outcome, not an error. LS_ERR_STATE: the CPU refuses this state (reserved MXCSR bits, a bad selector);
 * nothing ran. LS_ERR_CHILD: the child was killed from outside; try again. */
ls_status ls_executor_run(ls_executor *executor, const ls_run *run, ls_outcome *outcome, ls_error *error);

/* 1 if system calls of the guest can be stopped by this executor (LS_PTRACE: always; LS_SIGNAL: where the
 * kernel has Syscall User Dispatch, Linux 5.11, and lets this process use it), else 0: a guest's system call
 * is then executed. Calls to the vsyscall page (gettimeofday, time and getcpu at 0xffffffffff600000) are none
 * to the kernel that dispatch stops: LS_SIGNAL executes them always, and they write where the guest says. The
 * reference stops them where the kernel has seccomp filters, and notes LS_TOUCHED_FOREIGN. */
int ls_executor_stops_syscalls(ls_executor *executor);

/* 1 if every byte of [address, address + size) is unmapped in this process outside the guest's windows and
 * an access would not map it, 0 if not: whether a fault seen in the reference at that address will be one in
 * this process too. Guard pages count as unmapped, the
 * gate's first page as a window. The main thread's stack grows when it is accessed: it
 * counts as mapped down to its limit (RLIMIT_STACK; 16 GiB if that is more). */
int ls_address_faults(ls_executor *executor, uint64_t address, uint64_t size);

/* ---- Controllers ------------------------------------------------------------------------------------- */

/* An executor, a program and a state that last: one thread runs the guest, any number of others look at it,
 * change it, step it, reload its code and stop it, through the same calls for both kinds.
 *
 * Every function here may be called by any thread at any time, and in a process that has forked: there the
 * guest is idle. What concerns the same controller is done one after the other. A request interrupts a
 * running guest between two of its instructions (a repeated string instruction: between two of its
 * repetitions); what was inserted between them is never seen: it is carried out first. The guest cannot tell,
 * but for these things: FS and GS, which are reset to those a run starts with; with options.vectors below
 * what the CPU has, the registers beyond, which are lost; and what an entry into the kernel or a switch of
 * threads loses too: RFLAGS.NT, null selectors 1 to 3 in DS and ES, and, on AMD, x87's FOP, FIP and FDP while
 * no exception is pending.
 *
 * From inside a visitor or a sample callback, calls for the same controller fail with LS_ERR_BUSY; they must
 * not fork, and two visitors that call for each other's controllers wait for each other for good. The exit
 * callback may do everything. All three must return: no jump, exception or pthread_exit out of them. The
 * thread in ls_execute must not be cancelled (pthread_cancel).
 *
 * Not signal safe. */
typedef struct ls_controller ls_controller;

/* Called by ls_execute before it returns LS_OK, in its thread, when the guest is idle again. */
typedef void (*ls_exit_callback)(ls_controller *controller, const ls_stop *stop, void *context);

enum {
  LS_WITHOUT_X87 = 1 /* runs neither load nor store x87 and MMX registers: 100 to 200 ns less, and the
                        guest must not use them */
};

typedef struct ls_controller_options {
  ls_options executor;
  const ls_layout *layout;  /* copied; NULL: the first default layout that is free here, and RSP at the top of
                               its stack window. LS_SIGNAL: there are LS_LAYOUT_SLOTS of them in a process;
                               more controllers than that need layouts of their own */
  ls_exit_callback on_exit; /* or NULL */
  void *context;            /* for on_exit */
  uint32_t flags;           /* LS_WITHOUT_X87 */
  uint32_t reserved;
} ls_controller_options;

/* Makes a controller without code, its state as from ls_state_init, its memory zero. `options` may be NULL.
 * Errors and demands on the host are those of ls_executor_create. */
ls_status ls_controller_create(ls_kind kind, const ls_controller_options *options, ls_controller **controller,
                               ls_error *error);

/* Cancels a guest that still runs, waits until ls_execute has no more use for the controller, and ends it. No
 * other thread may begin a call meanwhile, or be in one but ls_execute, ls_step and ls_run_until. Not from
 * inside a visitor or a sample callback. NULL is fine. */
void ls_controller_destroy(ls_controller *controller);

/* The layout now in force: ls_update_code may move the code window. */
void ls_controller_layout(ls_controller *controller, ls_layout *layout);

/* This process's own view of window `window`, shared with a guest that may be running; of the window's size,
 * or NULL if there is no such window. Valid until destroy, that of the code window too, wherever the guest
 * sees it. After a fork the child's view becomes its own with its first ls_execute or ls_update_code. What is
 * written to the code window is as ls_executor_memory says, and the next ls_update_code replaces it. */
void *ls_controller_memory(ls_controller *controller, uint32_t window);

/* The same view at guest address `address` of the layout now in force, or NULL unless one window holds all of
 * `size` bytes there, at least 1. */
void *ls_controller_pointer(ls_controller *controller, uint64_t address, uint64_t size);

/* Replaces the code, also while the guest runs or is paused: it goes on at the same instruction, by id,
 * exactly once; if that is not in the new code it stops with LS_STOP_GONE. The rest of the code window is
 * int3. Addresses of the old code that the guest holds itself (return addresses) become wrong where an
 * instruction has moved. The code window grows as needed, and may move when it does. LS_ERR_PROGRAM as from
 * ls_image_build, and for an id that occurs twice (index: the second); LS_ERR_ADDRESS or LS_ERR_MEMORY if it
 * cannot grow; in all these cases the old code stays in force. Linear in the size of the program. The program
 * is copied. */
ls_status ls_update_code(ls_controller *controller, const ls_program *program, ls_error *error);

typedef struct ls_limits {
  uint64_t fuel;     /* units for programs with LS_PROGRAM_FUEL; 0 = endless */
  uint32_t limit_ms; /* CPU time of the guest; 0 = none. LS_SIGNAL: of its thread, without what answers to
                        requests and sample callbacks take; LS_PTRACE: of the child. Rounded up to ticks, or
                        sampling periods if these are longer */
  uint32_t reserved;
} ls_limits;

/* Runs the guest in this thread from instruction `id` until it stops, with the registers it has. `limits` may
 * be NULL: none. LS_ERR_BUSY if it runs already; LS_ERR_ARGUMENT if there is no code or no such id; else as
 * ls_executor_run. After LS_ERR_CHILD the registers are those that the guest was last entered with, while
 * memory is as it left it. */
ls_status ls_execute(ls_controller *controller, uint64_t id, const ls_limits *limits, ls_stop *stop,
                     ls_error *error);

typedef enum ls_activity {
  LS_IDLE, /* in no ls_execute: what is seen is what the last run left */
  LS_RUNNING,
  LS_PAUSED
} ls_activity;

/* Where a guest is. */
typedef struct ls_position {
  uint64_t id;          /* of the instruction about to be executed, or, idle, of that it stopped at */
  uint32_t instruction; /* its index, or LS_NONE: outside the code (or between instructions, if the guest
                           jumped there); then id is 0 */
  ls_part part;         /* idle: as in ls_stop; else LS_PART_BODY */
  ls_activity activity;
} ls_position;

/* Copies the state, and where the guest is; either pointer may be NULL. A running guest is stopped for no
 * longer than the copy. state->rip is an address of the code now in force; of an idle guest, of the code in
 * which it stopped. */
ls_status ls_get_state(ls_controller *controller, ls_state *state, ls_position *position, ls_error *error);

/* May change *state, and position->id: the guest goes on there. A return value other than 0 discards all
 * changes. Called in the thread that called ls_change_state, while the guest waits. */
typedef int (*ls_state_visitor)(ls_state *state, ls_position *position, void *context);

/* Lets `visitor` see and change the state of a running, paused or idle guest. state->rip and the selectors
 * are not taken over. An idle guest begins where ls_execute says: moving it is LS_ERR_IDLE. LS_ERR_ARGUMENT
 * if there is no instruction of that id, LS_ERR_STATE for bits in RFLAGS or MXCSR that no guest can have; in
 * both cases nothing has changed. */
ls_status ls_change_state(ls_controller *controller, ls_state_visitor visitor, void *context,
                          ls_error *error);

/* Stops the guest before its next instruction and leaves it there; of an idle guest the next run begins
 * paused. Pauses are not counted. */
ls_status ls_pause(ls_controller *controller, ls_error *error);

/* Ends a pause, and a step or a run to an instruction that somebody waits for (LS_ERR_SUPERSEDED there).
 * LS_OK too if there was none. */
ls_status ls_resume(ls_controller *controller, ls_error *error);

/* Executes `count` instructions, at least 1, of a running or paused guest and pauses it; returns when that is
 * done. LS_ERR_IDLE if it is idle or stopped before (ls_execute's stop tells why). Processors trap only
 * behind the instruction after one that loads SS (SDM vol. 3, 6.8.3): those two are one step. */
ls_status ls_step(ls_controller *controller, uint64_t count, ls_error *error);

/* Lets the guest run until it is about to execute instruction `id` (again, if it is there now), pauses it and
 * returns. LS_ERR_IDLE as for ls_step; LS_ERR_ARGUMENT if there is no such instruction, or no longer.
 * Meanwhile the first byte of that instruction is int3, which a guest that reads its own code can see. */
ls_status ls_run_until(ls_controller *controller, uint64_t id, ls_error *error);

/* Ends the run, whatever the guest does: ls_execute reports LS_STOP_CANCELLED. LS_ERR_IDLE: too late, it had
 * stopped by itself, or was not running. */
ls_status ls_cancel(ls_controller *controller, ls_error *error);

/* One look at a running guest. */
typedef struct ls_sample {
  uint64_t id; /* as in ls_position */
  uint32_t instruction;
  uint32_t weight; /* sampling periods that it stands for: more than 1 where the timer is coarser than asked
                      (ls_sample_start) */
  ls_state state;
} ls_sample;

/* Called in the guest's thread while the guest waits. */
typedef void (*ls_sample_callback)(const ls_sample *sample, void *context);

enum { LS_SAMPLE_RATE_MIN = 10, LS_SAMPLE_RATE_MAX = 1000 };

/* From now on `rate` samples a second of the guest's CPU time, over all runs until ls_sample_stop: to
 * `callback` or, if that is NULL, into a ring of `room` samples (0 = 1024), where new ones are dropped while
 * it is full. Replaces an earlier start; samples not yet read are lost.
 *
 * Linux looks at timers of CPU time at its clock interrupt only, CONFIG_HZ times a second, often 250. Up to
 * that rate samples come by such a timer. Above it
 *   - of LS_SIGNAL by an exact timer, each with weight 1 unless it is late by a period, if `rate` rings of a
 *     timer take less than a 128th of the time here: with the samples under 2 %. The first run in a process
 *     that is sampled so fast measures that, in some milliseconds at most, and it holds for all others.
 *   - else, and of LS_PTRACE, where a stop of the child takes more than that, as many as there are clock
 *     interrupts, with the weights that make it `rate`.
 * The exact timer rings while the guest runs, and at most once after: no other sleep of its thread is cut
 * short. */
ls_status ls_sample_start(ls_controller *controller, uint32_t rate, ls_sample_callback callback,
                          void *context, uint32_t room, ls_error *error);

/* After its return the callback is not called any more. The ring can still be read. */
ls_status ls_sample_stop(ls_controller *controller, ls_error *error);

/* Takes up to `room` samples out of the ring, oldest first; *count of them. *dropped: how many found the ring
 * full since the last call; may be NULL. */
ls_status ls_sample_read(ls_controller *controller, ls_sample *samples, uint32_t room, uint32_t *count,
                         uint64_t *dropped, ls_error *error);

#ifdef __cplusplus
}
#endif
#endif
