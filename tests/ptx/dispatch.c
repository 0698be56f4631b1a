/* dispatch.c: the function of an operation. */
#include "ptx.h"

static const PtxExec integer[OP_COUNT] = {
#define X(OP, name) [OP_##OP] = ptx_exec_##name,
    X(ADD, add) X(SUB, sub) X(MUL, mul) X(MULW, mulw) X(MAD, mad) X(MADW, madw) X(DIV, div)
        X(REM, rem) X(ABS, abs) X(NEG, neg) X(MIN, min) X(MAX, max) X(POPC, popc) X(CLZ, clz)
            X(BFIND, bfind) X(BREV, brev) X(BFE, bfe) X(BFI, bfi) X(AND, and) X(OR, or) X(XOR, xor)
                X(NOT, not ) X(SHL, shl) X(SHR, shr) X(SHF, shf) X(PRMT, prmt) X(LOP3, lop3)
                    X(SELP, selp) X(SETP, setp) X(MOV, mov) X(CVT, cvt) X(CVT2, cvt2) X(CVTA, cvta)
                        X(FMA, fma) X(DIVA, diva) X(RCP, rcp) X(SQRT, sqrt) X(RCPA, rcpa)
                            X(SQRTA, sqrta) X(RSQRT, rsqrt) X(SIN, sin) X(COS, cos) X(LG2, lg2)
                                X(EX2, ex2) X(TANH, tanh) X(COPYSIGN, copysign) X(TESTP, testp)
                                    X(LD, ld) X(ST, st) X(ATOM, atom) X(RED, red)
                                        X(CPASYNC, cpasync) X(CPCOMMIT, cpcommit) X(CPWAIT, cpwait)
                                            X(CPWAITALL, cpwaitall) X(LDMATRIX, ldmatrix)
                                                X(MMA, mma) X(SHFL, shfl) X(VOTE, vote)
                                                    X(BALLOT, ballot) X(MATCH, match)
                                                        X(REDUX, redux) X(ACTIVEMASK, activemask)
                                                            X(BARWARP, barwarp) X(FENCE, fence)};
static const PtxExec real[OP_COUNT] = {X(ADD, fadd) X(SUB, fsub) X(MUL, fmul) X(DIV, fdiv)
                                           X(ABS, fabs) X(NEG, fneg) X(MIN, fmin) X(MAX, fmax)
                                               X(SETP, fsetp)
#undef X
};

PtxExec ptx_exec_of(const PtxOpcode *c) {
    if (c->ntypes && ptx_type_float(c->type[0]) && real[c->op]) {
        return real[c->op];
    }
    return integer[c->op]; /* NULL: bra, ret, exit, trap and barriers are warp.c's */
}
