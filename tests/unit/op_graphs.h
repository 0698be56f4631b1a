/* op_graphs.h: small graphs, in the language of lower_help.h, that together use every op of the table. */
#ifndef STGCC_TESTS_OP_GRAPHS_H
#define STGCC_TESTS_OP_GRAPHS_H

static const char *const elementwise[] = {
    "x = f32[3,7]; a = neg x; b = abs x; c = sign x; d = floor x; e = ceil x; f = round x; out a b "
    "c d e f",
    "x = f32[3,70]; a = exp x; b2 = tanh x; e = erf x; s = sigmoid x; p = softplus x; q = sin x; t "
    "= cos x\n"
    "out a b2 e s p q t",
    "x = f32[3,70]; y = abs x; z = add y #0.1; a = log z; b = sqrt z; c = recip z; out a b c",
    "x = f32[5]; b = bool[5]; n = not b; m = isnan x; i = isinf x; out n m i",
    "x = f32[4,3]; y = f32[3]; a = add x y; b = sub x y; c = mul y x; d = div x y; e = min x y; f "
    "= max x y; out a b c d e f",
    "x = f32[4,1,3]; y = f32[5,1]; a = add x y; b = eq a a; c = lt x y; d = le x y; out a b c d",
    "x = i64<-9,9>[4,3]; y = i64<1,5>[3]; a = add x y; b = div x y; c = mod x y; d = mod x y "
    "{fmod=1}; e = max x y; out a b c d e",
    "x = i64<-9,9>[6]; y = i64<0,4>[6]; p = pow x y; n = neg x; a = abs x; s = sign x; out p n a s",
    "x = f32[6]; y = f32[6]; a = abs x; z = add a #0.5; p = pow z y; q = pow x #2; m = mod x z; "
    "out p q m",
    "a = bool[9]; b = bool[9]; c = and a b; d = or a b; e = xor a b; f = eq a b; out c d e f",
    "c = bool[4,1]; x = f32[4,6]; y = f32[6]; z = where c x y; w = where c @3 @4; out z w",
    "x = f32[40]; i = cast x {to=i64}; b = cast x {to=bool}; d = cast x {to=f64}; k = cast i "
    "{to=f32}; e = cast b {to=f32}\n"
    "out i b d k e",
    "x = i64<-500,500>[40]; a = cast x {to=u8}; b = cast x {to=i8}; c = cast x {to=i32}; d = cast "
    "a {to=i64}; e = cast b {to=f32}\n"
    "out a b c d e",
    "x = f64[3,4]; y = f64[4]; a = add x y; b = exp a; out b",
    "x = f32[0,4]; y = f32[4]; z = add x y; out z",
    "x = f32[]; y = f32[1]; z = mul x y; out z",
};

static const char *const shapes[] = {
    "x = f32[4,6]; y = reshape x {dims=[2,12]}; z = add y #1; out y z",
    "x = f32[2,3,4]; a = transpose x {perm=[0,2,1]}; b = transpose x {perm=[2,0,1]}; c = transpose "
    "x {perm=[1,0,2]}; out a b c",
    "x = f32[2,1,4]; a = expand x {dims=[2,3,4]}; b = expand x {dims=[5,2,3,4]}; out a b",
    "x = f32[6,8]; a = slice x {axes=[0],starts=[1],ends=[4],steps=[1]}; b = slice x "
    "{axes=[1],starts=[2],ends=[8],steps=[3]}\n"
    "c = slice x {axes=[1],starts=[7],ends=[-9],steps=[-1]}; d = mul a #2; out a b c d",
    "x = f32[2,3]; y = f32[2,5]; z = concat x y x {axis=1}; w = concat y y {axis=0}; out z w",
    "x = f32[3,4]; a = pad x {pads=[1,2,0,3]}; b = pad x {pads=[-1,0,1,2],value_f=2.5}; out a b",
    "x = f32[3,40]; s = shape x; out s",
    "x = f32[4,8]; a = slice x {axes=[1],starts=[0],ends=[4],steps=[1]}; b = slice x "
    "{axes=[1],starts=[4],ends=[8],steps=[1]}\n"
    "n = neg b; r = concat n a {axis=1}; y = mul r x; out y",
    "x = f32[2,3,4,5]; y = transpose x {perm=[0,2,1,3]}; z = reshape y {dims=[2,4,15]}; w = mul z "
    "#2; v = transpose w {perm=[1,0,2]}; out v",
    "x = f32[30]; a = reshape x {dims=[5,6]}; t = transpose a {perm=[1,0]}; b = reshape t "
    "{dims=[3,10]}; c = exp b; out c",
};

static const char *const reductions[] = {
    "x = f32[4,33]; a = reduce_sum x {axes=[1],keepdims=0}; b = reduce_max x "
    "{axes=[1],keepdims=1}; c = reduce_min x {axes=[0],keepdims=0}\n"
    "d = reduce_prod x {axes=[0],keepdims=1}; e = reduce_sum x {axes=[0,1],keepdims=0}; out a b c "
    "d e",
    "x = f32[3,4,5,6]; a = reduce_sum x {axes=[1,3],keepdims=0}; b = reduce_sum x "
    "{axes=[0,2],keepdims=0}; c = reduce_max x {axes=[1],keepdims=1}; out a b c",
    "x = f32[300,200]; a = reduce_sum x {axes=[0],keepdims=0}; b = reduce_sum x "
    "{axes=[0,1],keepdims=0}; c = reduce_sum x {axes=[1],keepdims=0}; out a b c",
    "x = f32[5,50000]; a = reduce_sum x {axes=[1],keepdims=0}; b = reduce_max x "
    "{axes=[0,1],keepdims=0}; out a b",
    "x = f32[40000,2]; a = reduce_sum x {axes=[0],keepdims=0}; out a",
    "x = i64<-9,9>[4,5]; b = bool[4,5]; a = reduce_sum x {axes=[1],keepdims=0}; c = reduce_max x "
    "{axes=[0],keepdims=0}; d = reduce_max b {axes=[1],keepdims=0}\n"
    "e = reduce_min b {axes=[0],keepdims=0}; out a c d e",
    "x = f32[0,4]; a = reduce_sum x {axes=[0],keepdims=0}; b = reduce_max x {axes=[0],keepdims=0}; "
    "c = reduce_sum x {axes=[1],keepdims=0}; out a b c",
    "x = f32[4,9,3]; a = argmax x {axis=1,keepdims=0}; b = argmax x {axis=2,keepdims=1,last=1}; c "
    "= argmax x {axis=0,keepdims=0,largest=0}; out a b c",
    "x = i64<0,3>[4,20]; a = argmax x {axis=1,keepdims=0}; b = argmax x "
    "{axis=1,keepdims=0,last=1}; out a b",
    "x = f32[3,7,5]; a = cumsum x {axis=1}; b = cumsum x {axis=2,exclusive=1}; c = cumsum x "
    "{axis=0,reverse=1}; d = cumsum x {axis=1,reverse=1,exclusive=1}; out a b c d",
    "x = f32[6,16]; a,b = topk x {k=3,axis=-1,largest=1}; c,d = topk x {k=2,axis=0,largest=0}; e,f "
    "= topk x {k=16,axis=1,largest=1}; out a b c d e f",
    "x = i64<0,4>[6,16]; a,b = topk x {k=5,axis=-1,largest=1}; c,d = topk x "
    "{k=5,axis=-1,largest=0}; out a b c d",
    "x = f32[5,33]; a = softmax x {axis=-1}; b = log_softmax x {axis=1}; c = softmax x {axis=0}; d "
    "= log_softmax x {axis=0}; out a b c d",
    "x = f32[2,3,4]; a = softmax x {axis=1,masked=1}; b = log_softmax x {axis=1}; out a b",
    "x = f32[4,20000]; a = softmax x {axis=-1}; out a",
    "m = bool[6,3]; x = f32[6,3]; i = const f32[] -inf; y = where m x i; s = softmax y "
    "{axis=-1,masked=1}; out s",
    "x = f32[6,50]; l = i64<0,50>[6]; g = f32[6]; n,e = xent x l {ignore_index=7}; d = xent_grad x "
    "l e g {ignore_index=7}; out n e d",
};

static const char *const indexing[] = {
    "x = f32[9,6]; i = i64<-9,9>[2,5]; a = gather x i {axis=0}; j = i64<-6,6>[4]; b = gather x j "
    "{axis=1}; out a b",
    "x = f32[9,6]; i = i64<0,6>[9,2]; a = gather_elements x i {axis=1}; j = i64<-9,9>[4,6]; b = "
    "gather_elements x j {axis=0}; out a b",
    "x = f32[4,5,6]; i = i64<0,4>[7,2]; a = gather_nd x i {batch_dims=0}; j = i64<0,5>[4,3,1]; b = "
    "gather_nd x j {batch_dims=1}; out a b",
    "u = f32[5,6]; i = i64<0,9>[5]; a = scatter_add u i {axis=0,dims=[9,6]}; v = f32[3,5]; b = "
    "scatter_add v i {axis=1,dims=[3,9]}; out a b",
    "u = f32[7,300]; i = i64<0,9>[7]; a = scatter_add u i {axis=0,dims=[9,300]}; out a",
    "x = f32[9,6]; i = i64<0,6>[9,2]; u = f32[9,2]; a = scatter_elements x i u {axis=1}; b = "
    "scatter_elements x i u {axis=1,reduction=add}\n"
    "c = scatter_elements x i u {axis=1,reduction=max}; out a b c",
    "x = f32[9,6]; i = i64<0,9>[3,6]; u = f32[3,6]; a = scatter_elements x i u "
    "{axis=0,reduction=mul}; out a",
    "x = f32[4,5,200]; i = i64<0,4>[6,2]; u = f32[6,200]; a = scatter_nd x i u {reduction=add}; j "
    "= i64<0,4>[3,1]; v = f32[3,5,200]\n"
    "b = scatter_nd x j v; out a b",
    "x = f32[2,3,8]; a = unfold x {kernel=[3],strides=[2],dilations=[1],pads=[1,1]}; b = fold a "
    "{dims=[8],kernel=[3],strides=[2],dilations=[1],pads=[1,1]}; out a b",
    "x = f32[2,3,8,7]; a = unfold x {kernel=[3,2],strides=[2,1],dilations=[1,2],pads=[1,0,2,1]}\n"
    "b = fold a {dims=[8,7],kernel=[3,2],strides=[2,1],dilations=[1,2],pads=[1,0,2,1]}; out a b",
};

static const char *const products[] = {
    "x = f32[5,6]; w = f32[6,7]; v = f32[7,6]; u = f32[6,5]; a = matmul x w; b = matmul x v "
    "{trans_b=1}; c = matmul u w {trans_a=1}; d = matmul u v {trans_a=1,trans_b=1}; out a b c d",
    "x = f32[2,3,5,6]; w = f32[6,7]; a = matmul x w; y = f32[2,3,6,4]; b = matmul x y; z = "
    "f32[3,6,4]; c = matmul x z; y1 = f32[2,1,6,4]; d = matmul x y1; out a b c d",
    "x = f32[6]; w = f32[6,7]; v = f32[3,5,6]; a = matmul x w; b = matmul v x; c = matmul x x; out "
    "a b c",
    "x = f32[2,1,3,5,6]; y = f32[1,4,1,6,2]; a = matmul x y; out a",
    "x = f64[5,6]; y = f64[6,7]; a = matmul x y; i = i64<-5,5>[3,4]; j = i64<-5,5>[4,2]; b = "
    "matmul i j; out a b",
    "x = f32[5,0]; y = f32[0,7]; a = matmul x y; z = f32[0,5]; b = matmul z a; out a b",
    "x = f32[70,130]; w = f32[130,90]; a = matmul x w; out a",
};

static const char *const experts[] = {
    "x = f32[12,6]; s = i64<-1,4>[12,2]; o,t,p,e,pr,te = dispatch s {experts=4,top_k=2}; r = "
    "gather_rows x t pr; y = combine r pr t; w = f32[4,6,5]\n"
    "h = grouped_matmul r o w; v = f32[24,5]; g = grouped_wgrad r h o; k = grouped_wgrad r h o "
    "{trans_b=1}; q = segment_sum h o e; d = token_dot r h o; d2 = token_dot r h o g\n"
    "out o t p e pr te r y h g k q d d2",
    "x = f32[9,6]; m = bool[9,4]; o,t,p,e,pr,te = dispatch m {experts=4,top_k=0}; r = gather_rows "
    "x t pr; w0 = f32[3,6]; w1 = f32[3,6]; w2 = f32[3,6]; w3 = f32[3,6]\n"
    "h = grouped_matmul r o w0 w1 w2 w3 {trans_b=1}; y = combine h te t; g = f32[36]; q = "
    "segment_sum g o e; out o t p e pr te h y q",
    "x = f32[40,6]; s = f32[5,20]; o,t,p,e,pr,te = dispatch s {experts=20,top_k=0}; v = "
    "f32[100,6]; y = combine v te t; out y",
    "x = f32[6]; s = i64<0,3>[8,1]; o,t,p,e,pr,te = dispatch s {experts=3,top_k=1}; b = f32[8]; q "
    "= segment_sum b o e; out o e te q",
};

static const char *const updates[] = {
    "p = param f32[40,3]; g = f32[40,3]; m = param f32[40,3]; v = param f32[40,3]; v2 = mul v v; h "
    "= f32[8]; h2 = abs h\n"
    "a,b,c = adamw p g m v2 h2 {weight_decay=0.1}; update p a; update m b; update v c; out b",
    "p = param f32[40]; g = f32[40]; h = f32[8]; q = sgd p g h {weight_decay=0.1}; update p q",
    "p = param f32[40]; m = param f32[40]; g = f32[40]; h = f32[8]; q,n = sgd p g h m "
    "{momentum=0.9}; update p q; update m n; y = mul p #2; out y",
    "p = param f32[4]; q = param f32[4]; x = f32[4]; a = add p x; b = mul a q; update p b; update "
    "q a; out a",
    "p = param f32[4,4]; x = f32[4,4]; a = matmul p x; b = transpose p {perm=[1,0]}; c = add b a; "
    "update p c; out b",
    "p = param f32[4]; q = param f32[4]; update p q; update q p; r = add p q; out r",
    "p = param f32[4]; x = f32[4]; a = add p x; update p a; out p",
};

#endif
