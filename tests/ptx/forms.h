/* forms.h: the one table of PTX instruction forms. Parser, lint, executor and the table of what is
 * covered by tests come from it.
 *
 * F(op, pattern, operands)
 *   pattern   the instruction's dotted words: word, {one,of}, [optional,one,of]
 *   operands  '=' marks a destination; letters say what may stand there:
 *       t  a register or immediate of the first type word       s  … of the second type word
 *       w  … of twice the width of the first type word           u  … b32      l  … b64   f  … f32
 *       x  as t, but the register may be wider (ld, st, cvt)     y  as s, but …
 *       p  a predicate, may be negated where it is read          P  a destination with optional |p
 *       v  as x, in braces when there is .v2 or .v4              m  a memory address
 *       i  an immediate                                          L  a label
 *       a digit: that many in braces       ?  from here on optional
 *
 * What is not here is not known: ptx_load refuses it, ptx_lint reports it. Deliberately absent:
 * call, clusters, wgmma, TMA, named partial barriers, texture, video and carry-chain instructions. */
#ifndef STGCC_TESTS_PTX_FORMS_H
#define STGCC_TESTS_PTX_FORMS_H

#define PTX_I16 "u16,s16,"
#define PTX_INTS "u16,u32,u64,s16,s32,s64"
#define PTX_ANY "b16,b32,b64,u16,u32,u64,s16,s32,s64,f16,bf16,f32,f64"
#define PTX_CMP_F "{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,num,nan}"
#define PTX_CMP_I "{eq,ne,lt,le,gt,ge,lo,ls,hi,hs}"
#define PTX_ROUND "[rn,rz,rm,rp]"
#define PTX_ROUND1 "{rn,rz,rm,rp}"
#define PTX_SPACE "[global,shared,local,param,const]"
#define PTX_MEM "{b8,b16,b32,b64,u8,u16,u32,u64,s8,s16,s32,s64,f32,f64}"
#define PTX_SCOPE "{cta,gpu,sys}"

#define PTX_FORMS(F) \
    /* integer */ \
    F(ADD, "add.{" PTX_INTS "}", "=t t t") \
    F(ADD, "add.sat.s32", "=t t t") \
    F(SUB, "sub.{" PTX_INTS "}", "=t t t") \
    F(SUB, "sub.sat.s32", "=t t t") \
    F(MUL, "mul.{lo,hi}.{" PTX_INTS "}", "=t t t") \
    F(MULW, "mul.wide.{u16,s16,u32,s32}", "=w t t") \
    F(MAD, "mad.{lo,hi}.{" PTX_INTS "}", "=t t t t") \
    F(MADW, "mad.wide.{u16,s16,u32,s32}", "=w t t w") \
    F(DIV, "div.{" PTX_INTS "}", "=t t t") \
    F(REM, "rem.{" PTX_INTS "}", "=t t t") \
    F(ABS, "abs.{s16,s32,s64}", "=t t") \
    F(NEG, "neg.{s16,s32,s64}", "=t t") \
    F(MIN, "min.{" PTX_INTS "}", "=t t t") \
    F(MAX, "max.{" PTX_INTS "}", "=t t t") \
    F(POPC, "popc.{b32,b64}", "=u t") \
    F(CLZ, "clz.{b32,b64}", "=u t") \
    F(BFIND, "bfind.[shiftamt].{u32,s32,u64,s64}", "=u t") \
    F(BREV, "brev.{b32,b64}", "=t t") \
    F(BFE, "bfe.{u32,s32,u64,s64}", "=t t u u") \
    F(BFI, "bfi.{b32,b64}", "=t t t u u") \
    F(AND, "and.{pred,b16,b32,b64}", "=t t t") \
    F(OR, "or.{pred,b16,b32,b64}", "=t t t") \
    F(XOR, "xor.{pred,b16,b32,b64}", "=t t t") \
    F(NOT, "not.{pred,b16,b32,b64}", "=t t") \
    F(SHL, "shl.{b16,b32,b64}", "=t t u") \
    F(SHR, "shr.{b16,b32,b64,u16,u32,u64,s16,s32,s64}", "=t t u") \
    F(SHF, "shf.{l,r}.{wrap,clamp}.b32", "=t t t u") \
    F(PRMT, "prmt.b32.[f4e,b4e,rc8,ecl,ecr,rc16]", "=t t t u") \
    F(LOP3, "lop3.b32", "=t t t t i") \
    F(SELP, "selp.{" PTX_ANY "}", "=t t t p") \
    F(SETP, "setp." PTX_CMP_I ".{b16,b32,b64," PTX_INTS "}", "=P t t") \
    F(SETP, "setp." PTX_CMP_I ".{and,or,xor}.{b16,b32,b64," PTX_INTS "}", "=P t t p") \
    F(SETP, "setp." PTX_CMP_F ".[ftz].{f16,bf16,f32,f64}", "=P t t") \
    F(SETP, "setp." PTX_CMP_F ".{and,or,xor}.[ftz].{f16,bf16,f32,f64}", "=P t t p") \
    F(MOV, "mov.{pred," PTX_ANY "}", "=t t") \
    /* conversions */ \
    F(CVT, "cvt.[sat].{u8,s8,u16,u32,u64,s16,s32,s64}.{u8,s8,u16,u32,u64,s16,s32,s64}", "=x y") \
    F(CVT, "cvt.{rni,rzi,rmi,rpi}.[ftz].[sat].{u8,s8," PTX_INTS "}.{f16,bf16,f32,f64}", "=x s") \
    F(CVT, "cvt." PTX_ROUND1 ".{f16,bf16,f32,f64}.{u8,s8," PTX_INTS "}", "=t y") \
    F(CVT, "cvt.{rni,rzi,rmi,rpi}.[ftz].[sat].f32.f32", "=t s") \
    F(CVT, "cvt.{rni,rzi,rmi,rpi}.f64.f64", "=t s") \
    F(CVT, "cvt.{rni,rzi,rmi,rpi}.[ftz].f16.f16", "=t s") \
    F(CVT, "cvt.{rni,rzi,rmi,rpi}.bf16.bf16", "=t s") \
    F(CVT, "cvt.[ftz].[sat].f32.f32", "=t s") \
    F(CVT, "cvt." PTX_ROUND1 ".[ftz].[sat].f32.f64", "=t s") \
    F(CVT, "cvt.[ftz].f64.f32", "=t s") \
    F(CVT, "cvt.[ftz].{f32,f64}.f16", "=t s") \
    F(CVT, "cvt.{f32,f64}.bf16", "=t s") \
    F(CVT, "cvt.rn.bf16.f64", "=t s") \
    F(CVT, "cvt.{rn,rz,rm,rp}.[ftz].f16.f32", "=t s") \
    F(CVT, "cvt.rn.f16.f64", "=t s") \
    F(CVT, "cvt.{rn,rz}.[relu].bf16.f32", "=t s") \
    F(CVT2, "cvt.{rn,rz}.[relu].{f16x2,bf16x2}.f32", "=t s s") \
    F(CVT, "cvt.rna.tf32.f32", "=t s") \
    F(CVTA, "cvta.[to].{global,shared,local,const,param}.{u32,u64}", "=t t") \
    /* floating point */ \
    F(ADD, "add." PTX_ROUND ".[ftz].[sat].f32", "=t t t") \
    F(ADD, "add." PTX_ROUND ".f64", "=t t t") \
    F(ADD, "add.[rn].[ftz].[sat].{f16,f16x2}", "=t t t") \
    F(ADD, "add.[rn].{bf16,bf16x2}", "=t t t") \
    F(SUB, "sub." PTX_ROUND ".[ftz].[sat].f32", "=t t t") \
    F(SUB, "sub." PTX_ROUND ".f64", "=t t t") \
    F(SUB, "sub.[rn].[ftz].[sat].{f16,f16x2}", "=t t t") \
    F(SUB, "sub.[rn].{bf16,bf16x2}", "=t t t") \
    F(MUL, "mul." PTX_ROUND ".[ftz].[sat].f32", "=t t t") \
    F(MUL, "mul." PTX_ROUND ".f64", "=t t t") \
    F(MUL, "mul.[rn].[ftz].[sat].{f16,f16x2}", "=t t t") \
    F(MUL, "mul.[rn].{bf16,bf16x2}", "=t t t") \
    F(FMA, "fma." PTX_ROUND1 ".[ftz].[sat].f32", "=t t t t") \
    F(FMA, "fma." PTX_ROUND1 ".f64", "=t t t t") \
    F(FMA, "fma.rn.[ftz].[sat].{f16,f16x2}", "=t t t t") \
    F(FMA, "fma.rn.{bf16,bf16x2}", "=t t t t") \
    F(DIV, "div." PTX_ROUND1 ".[ftz].f32", "=t t t") \
    F(DIV, "div." PTX_ROUND1 ".f64", "=t t t") \
    F(DIVA, "div.{full,approx}.[ftz].f32", "=t t t") \
    F(RCP, "rcp." PTX_ROUND1 ".[ftz].f32", "=t t") \
    F(RCP, "rcp." PTX_ROUND1 ".f64", "=t t") \
    F(SQRT, "sqrt." PTX_ROUND1 ".[ftz].f32", "=t t") \
    F(SQRT, "sqrt." PTX_ROUND1 ".f64", "=t t") \
    F(RCPA, "rcp.approx.[ftz].f32", "=t t") \
    F(SQRTA, "sqrt.approx.[ftz].f32", "=t t") \
    F(RSQRT, "rsqrt.approx.[ftz].f32", "=t t") \
    F(SIN, "sin.approx.[ftz].f32", "=t t") \
    F(COS, "cos.approx.[ftz].f32", "=t t") \
    F(LG2, "lg2.approx.[ftz].f32", "=t t") \
    F(EX2, "ex2.approx.[ftz].f32", "=t t") \
    F(TANH, "tanh.approx.f32", "=t t") \
    F(ABS, "abs.[ftz].{f16,f16x2,f32}", "=t t") \
    F(ABS, "abs.{bf16,bf16x2,f64}", "=t t") \
    F(NEG, "neg.[ftz].{f16,f16x2,f32}", "=t t") \
    F(NEG, "neg.{bf16,bf16x2,f64}", "=t t") \
    F(MIN, "min.[ftz].[NaN].{f16,f16x2,f32}", "=t t t") \
    F(MIN, "min.[NaN].{bf16,bf16x2}", "=t t t") \
    F(MIN, "min.f64", "=t t t") \
    F(MAX, "max.[ftz].[NaN].{f16,f16x2,f32}", "=t t t") \
    F(MAX, "max.[NaN].{bf16,bf16x2}", "=t t t") \
    F(MAX, "max.f64", "=t t t") \
    F(COPYSIGN, "copysign.{f32,f64}", "=t t t") \
    F(TESTP, "testp.{finite,infinite,number,notanumber,normal,subnormal}.{f32,f64}", "=p t") \
    /* memory */ \
    F(LD, "ld.[weak]." PTX_SPACE ".[ca,cg,cs,lu,cv].[L1::evict_last,L1::evict_first," \
          "L1::evict_normal,L1::no_allocate].[L2::128B,L2::64B,L2::256B].[v2,v4]." PTX_MEM, "=v m") \
    F(LD, "ld.global.[ca,cg,cs].nc.[L1::evict_last,L1::evict_first,L1::evict_normal," \
          "L1::no_allocate].[L2::128B,L2::64B,L2::256B].[v2,v4]." PTX_MEM, "=v m") \
    F(LD, "ld.volatile.[global,shared,local].[v2,v4]." PTX_MEM, "=v m") \
    F(LD, "ld.{relaxed,acquire}." PTX_SCOPE ".[global,shared].[v2,v4]." PTX_MEM, "=v m") \
    F(ST, "st.[weak].[global,shared,local].[wb,cg,cs,wt].[L1::evict_last,L1::evict_first," \
          "L1::evict_normal,L1::no_allocate].[v2,v4]." PTX_MEM, "m v") \
    F(ST, "st.volatile.[global,shared,local].[v2,v4]." PTX_MEM, "m v") \
    F(ST, "st.{relaxed,release}." PTX_SCOPE ".[global,shared].[v2,v4]." PTX_MEM, "m v") \
    F(ATOM, "atom.[relaxed,acquire,release,acq_rel].[cta,gpu,sys].[global,shared]." \
            "{and,or,xor,exch}.{b32,b64}", "=t m t") \
    F(ATOM, "atom.[relaxed,acquire,release,acq_rel].[cta,gpu,sys].[global,shared]." \
            "add.{u32,s32,u64,f32,f64}", "=t m t") \
    F(ATOM, "atom.[relaxed,acquire,release,acq_rel].[cta,gpu,sys].[global,shared]." \
            "{min,max}.{u32,s32,u64,s64}", "=t m t") \
    F(ATOM, "atom.[relaxed,acquire,release,acq_rel].[cta,gpu,sys].[global,shared]." \
            "{inc,dec}.u32", "=t m t") \
    F(ATOM, "atom.[relaxed,acquire,release,acq_rel].[cta,gpu,sys].[global,shared]." \
            "cas.{b16,b32,b64}", "=t m t t") \
    F(RED, "red.[relaxed,release].[cta,gpu,sys].[global,shared].{and,or,xor}.{b32,b64}", "m t") \
    F(RED, "red.[relaxed,release].[cta,gpu,sys].[global,shared].add.{u32,s32,u64,f32,f64}", "m t") \
    F(RED, "red.[relaxed,release].[cta,gpu,sys].[global,shared].{min,max}.{u32,s32,u64,s64}", \
      "m t") \
    F(RED, "red.[relaxed,release].[cta,gpu,sys].[global,shared].{inc,dec}.u32", "m t") \
    F(CPASYNC, "cp.async.{ca,cg}.{shared,shared::cta}.global.[L2::64B,L2::128B,L2::256B]", \
      "m m i ?u") \
    F(CPCOMMIT, "cp.async.commit_group", "") \
    F(CPWAIT, "cp.async.wait_group", "i") \
    F(CPWAITALL, "cp.async.wait_all", "") \
    F(LDMATRIX, "ldmatrix.sync.aligned.m8n8.x1.[trans].{shared,shared::cta}.b16", "=u1 m") \
    F(LDMATRIX, "ldmatrix.sync.aligned.m8n8.x2.[trans].{shared,shared::cta}.b16", "=u2 m") \
    F(LDMATRIX, "ldmatrix.sync.aligned.m8n8.x4.[trans].{shared,shared::cta}.b16", "=u4 m") \
    /* tensor cores */ \
    F(MMA, "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", "=f4 u2 u1 f4") \
    F(MMA, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "=f4 u4 u2 f4") \
    F(MMA, "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", "=f4 u2 u1 f4") \
    F(MMA, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "=f4 u4 u2 f4") \
    F(MMA, "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", "=f4 u2 u1 f4") \
    F(MMA, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "=f4 u4 u2 f4") \
    /* warps and CTAs */ \
    F(SHFL, "shfl.sync.{up,down,bfly,idx}.b32", "=P t u u u") \
    F(VOTE, "vote.sync.{all,any,uni}.pred", "=p p u") \
    F(BALLOT, "vote.sync.ballot.b32", "=t p u") \
    F(MATCH, "match.any.sync.{b32,b64}", "=u t u") \
    F(MATCH, "match.all.sync.{b32,b64}", "=P t u") \
    F(REDUX, "redux.sync.{add,min,max}.{u32,s32}", "=t t u") \
    F(REDUX, "redux.sync.{and,or,xor}.b32", "=t t u") \
    F(ACTIVEMASK, "activemask.b32", "=t") \
    F(BAR, "bar.sync", "u ?u") \
    F(BAR, "barrier.sync.[aligned]", "u ?u") \
    F(BARWARP, "bar.warp.sync", "u") \
    F(FENCE, "membar.{cta,gl,sys}", "") \
    F(FENCE, "fence.{sc,acq_rel}.{cta,gpu,sys}", "") \
    /* control */ \
    F(BRA, "bra.[uni]", "L") \
    F(RET, "ret.[uni]", "") \
    F(EXIT, "exit", "") \
    F(TRAP, "trap", "")

/* Every word that may follow a dot in a form, with the field of an instruction that it sets. */
#define PTX_WORDS(W) \
    W(PRED, "pred", TYPE) W(B8, "b8", TYPE) W(U8, "u8", TYPE) W(S8, "s8", TYPE) \
    W(B16, "b16", TYPE) W(U16, "u16", TYPE) W(S16, "s16", TYPE) W(F16, "f16", TYPE) \
    W(BF16, "bf16", TYPE) W(B32, "b32", TYPE) W(U32, "u32", TYPE) W(S32, "s32", TYPE) \
    W(F32, "f32", TYPE) W(TF32, "tf32", TYPE) W(F16X2, "f16x2", TYPE) \
    W(BF16X2, "bf16x2", TYPE) W(B64, "b64", TYPE) W(U64, "u64", TYPE) W(S64, "s64", TYPE) \
    W(F64, "f64", TYPE) \
    W(RN, "rn", ROUND) W(RZ, "rz", ROUND) W(RM, "rm", ROUND) W(RP, "rp", ROUND) \
    W(RNI, "rni", ROUND) W(RZI, "rzi", ROUND) W(RMI, "rmi", ROUND) W(RPI, "rpi", ROUND) \
    W(RNA, "rna", ROUND) \
    W(EQ, "eq", CMP) W(NE, "ne", CMP) W(LT, "lt", CMP) W(LE, "le", CMP) W(GT, "gt", CMP) \
    W(GE, "ge", CMP) W(LS, "ls", CMP) W(HS, "hs", CMP) W(EQU, "equ", CMP) W(NEU, "neu", CMP) \
    W(LTU, "ltu", CMP) W(LEU, "leu", CMP) W(GTU, "gtu", CMP) W(GEU, "geu", CMP) \
    W(NUM, "num", CMP) W(ISNAN, "nan", CMP) W(LO, "lo", CMP) W(HI, "hi", CMP) \
    W(FINITE, "finite", CMP) W(INFINITE, "infinite", CMP) W(NUMBER, "number", CMP) \
    W(NOTANUMBER, "notanumber", CMP) W(NORMAL, "normal", CMP) W(SUBNORMAL, "subnormal", CMP) \
    W(W_AND, "and", OP2) W(W_OR, "or", OP2) W(W_XOR, "xor", OP2) W(W_ADD, "add", OP2) \
    W(W_MIN, "min", OP2) W(W_MAX, "max", OP2) W(W_EXCH, "exch", OP2) W(W_CAS, "cas", OP2) \
    W(W_INC, "inc", OP2) W(W_DEC, "dec", OP2) \
    W(GLOBAL, "global", SPACE) W(SHARED, "shared", SPACE) W(SHARED_CTA, "shared::cta", SPACE) \
    W(LOCAL, "local", SPACE) W(PARAM, "param", SPACE) W(CONST, "const", SPACE) \
    W(V2, "v2", VEC) W(V4, "v4", VEC) \
    W(WEAK, "weak", NOTHING) W(VOLATILE, "volatile", STRONG) W(RELAXED, "relaxed", STRONG) \
    W(ACQUIRE, "acquire", STRONG) W(RELEASE, "release", STRONG) W(ACQ_REL, "acq_rel", STRONG) \
    W(SC, "sc", STRONG) W(CTA, "cta", SCOPE) W(GPU, "gpu", SCOPE) W(SYS, "sys", SCOPE) \
    W(GL, "gl", SCOPE) \
    W(CA, "ca", CACHE) W(CG, "cg", CACHE) W(CS, "cs", CACHE) W(LU, "lu", CACHE) \
    W(CV, "cv", CACHE) W(WB, "wb", CACHE) W(WT, "wt", CACHE) \
    W(L1_EVICT_LAST, "L1::evict_last", NOTHING) W(L1_EVICT_FIRST, "L1::evict_first", NOTHING) \
    W(L1_EVICT_NORMAL, "L1::evict_normal", NOTHING) \
    W(L1_NO_ALLOCATE, "L1::no_allocate", NOTHING) W(L2_64B, "L2::64B", NOTHING) \
    W(L2_128B, "L2::128B", NOTHING) W(L2_256B, "L2::256B", NOTHING) \
    W(WIDE, "wide", MODE) W(L, "l", MODE) W(R, "r", MODE) W(UP, "up", MODE) \
    W(DOWN, "down", MODE) W(BFLY, "bfly", MODE) W(IDX, "idx", MODE) W(ALL, "all", MODE) \
    W(ANY, "any", MODE) W(UNIFORM, "uni", MODE) W(BALLOT, "ballot", MODE) \
    W(APPROX, "approx", MODE) W(FULL, "full", MODE) W(F4E, "f4e", MODE) W(B4E, "b4e", MODE) \
    W(RC8, "rc8", MODE) W(ECL, "ecl", MODE) W(ECR, "ecr", MODE) W(RC16, "rc16", MODE) \
    W(X1, "x1", MODE) W(X2, "x2", MODE) W(X4, "x4", MODE) \
    W(M16N8K4, "m16n8k4", MODE) W(M16N8K8, "m16n8k8", MODE) W(M16N8K16, "m16n8k16", MODE) \
    W(FTZ, "ftz", FLAG) W(SAT, "sat", FLAG) W(NANS, "NaN", FLAG) W(TRANS, "trans", FLAG) \
    W(TO, "to", FLAG) W(NC, "nc", FLAG) W(RELU, "relu", FLAG) W(WRAP, "wrap", FLAG) \
    W(CLAMP, "clamp", FLAG) W(SHIFTAMT, "shiftamt", FLAG) \
    W(SYNC, "sync", NOTHING) W(ALIGNED, "aligned", NOTHING) W(M8N8, "m8n8", NOTHING) \
    W(ROW, "row", NOTHING) W(COL, "col", NOTHING) W(ASYNC, "async", NOTHING) \
    W(COMMIT_GROUP, "commit_group", NOTHING) W(WAIT_GROUP, "wait_group", NOTHING) \
    W(WAIT_ALL, "wait_all", NOTHING) W(WARP, "warp", NOTHING)

#endif
